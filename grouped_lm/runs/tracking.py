"""The record of a run: metrics.jsonl always, W&B as a copy that can neither stop nor change it."""

import contextlib
import csv
import io
import json
import netrc
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grouped_lm.config import Config, TrackingConfig, config_to_dict
from grouped_lm.runs.identity import config_hash

STEP_AXIS = "trainer/step"
METRIC_FAMILIES = ("train", "val", "throughput", "time", "memory")
QUIET_S = 3.0
"""Longest silence at the end of a run that talks to a server."""
FINISH_S = 60.0
"""Longest end of a run whose rows arrive one by one, and of one that is offline, where silence means a busy disk."""


class MetricsLog:
    """Append-only JSON lines, cut back to a checkpoint's length when a run goes on from it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def size(self) -> int:
        """Return the bytes written so far."""
        return self._path.stat().st_size if self._path.exists() else 0

    def cut(self, size: int) -> None:
        """Drop what was written after the first `size` bytes."""
        if self.size() > size:
            os.truncate(self._path, size)

    def read(self) -> bytes:
        """Return what was written so far."""
        return self._path.read_bytes() if self._path.exists() else b""

    def restore(self, content: bytes) -> None:
        """Bring back a lost record; one that is here and longer stays."""
        if self.size() < len(content):
            self._path.write_bytes(content)

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


class WandbRun:
    """One W&B run with the keys that dashboards rely on, in a thread of its own that the training never waits for.

    Every call may fail; then W&B is over and the run goes on. At the end it has as long as it gets something done every
    `QUIET_S`, `FINISH_S` in all; what is not sent by then stands in the run folder, and `wandb sync` sends it.
    """

    def __init__(self, config: Config, run_dir: Path, quiet: bool = False) -> None:
        self._run: Any = None
        self._over = quiet or config.tracking.mode == "disabled"
        self._quiet_s = FINISH_S if config.tracking.mode == "offline" else QUIET_S
        self._done = 0
        self._actions: queue.SimpleQueue[tuple[str, Callable[[], object]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if not self._over:
            self._actions.put(("load", _load))
            self._actions.put(("start", lambda: self._start(config, run_dir)))
            self._thread.start()

    def _start(self, config: Config, run_dir: Path) -> None:
        values = config_to_dict(config) | {"config_hash": config_hash(config)}
        tags = [config.model.name, config.head.name, config.data.name]
        tracking = config.tracking
        self._run = _start_run(
            tracking, run_dir, job_type=tracking.job_type, name=run_dir.name, tags=tags, config=values
        )
        for family in METRIC_FAMILIES:
            self._run.define_metric(f"{family}/*", step_metric=STEP_AXIS)

    def _work(self) -> None:
        while (action := self._actions.get()) is not None and not self._over:
            self._try(*action)
            self._done += 1

    def _try(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # tracking may never stop a run, whatever it raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._give_up(f"W&B could not {what} ({reason})")

    def _give_up(self, why: str) -> None:
        if not self._over:
            self._over = True
            print(f"gvc: warning: {why}; going on without it", file=sys.stderr)
            _end_service()

    def log(self, row: dict[str, Any]) -> None:
        """Copy a row; the step is `trainer/step`, since W&B drops steps that are replayed after a resume."""
        if not self._over:
            self._actions.put(("log", lambda: self._run.log(row)))

    def finish(self, result: dict[str, Any], exit_code: int = 0) -> None:
        """Write the final figures into the summary and close."""
        if self._over:
            return
        flat = {key: value for key, value in result.items() if not isinstance(value, dict | list)}
        self._actions.put(("write the summary", lambda: self._run.summary.update(flat)))
        self._actions.put(("finish", lambda: self._run.finish(exit_code=exit_code)))
        self._actions.put(None)
        started, done = time.monotonic(), -1
        while done != self._done and time.monotonic() - started < FINISH_S and self._thread.is_alive():
            done = self._done
            self._thread.join(self._quiet_s)
        if self._thread.is_alive():
            self._give_up("W&B does not answer; `wandb sync` sends later what stands in the run folder")


def _end_service() -> None:
    """End W&B's own process: its hook at the end of ours would wait for a server that does not answer."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            name, rest = status.read_text().split("(", 1)[1].rsplit(")", 1)
            if name.startswith(("wandb-core", "gpu_stats")) and int(rest.split()[1]) == os.getpid():
                os.kill(int(status.parent.name), signal.SIGKILL)
    forget = threading.Thread(target=_forget_service, daemon=True)
    forget.start()
    forget.join(1.0)


def _forget_service() -> None:
    import wandb

    with contextlib.suppress(Exception):  # it finds its process dead, which is what we want it to know
        wandb.teardown()


def _load() -> None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry waits at exit for a server that hangs
    import wandb  # noqa: F401, a step of its own: it takes a second and waits for nobody


def _start_run(tracking: TrackingConfig, folder: Path, tags: list[str], **kwargs: Any) -> Any:
    """Start, or go on with, the W&B run of `folder`; `kwargs` are those of `wandb.init`."""
    import wandb  # here, not above: it takes a second, and `tracking=disabled` need not wait for it

    return wandb.init(
        id=_stable_id(folder),
        resume="allow",
        mode=tracking.mode,  # type: ignore[arg-type]
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        tags=sorted({"paper-repro", *tags, *tracking.tags}),
        dir=str(folder.resolve()),  # W&B's service may run in another folder
        settings=wandb.Settings(init_timeout=tracking.init_timeout_s, silent=True, console="off"),
        **kwargs,
    )


def _stable_id(run_dir: Path) -> str:
    """Return the run's W&B id, kept in the run folder so that a continued run stays one run."""
    path = run_dir / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


class Tracker:
    """The record and its copy.

    Args:
        config: the run.
        run_dir: its folder.
        log: the record.
        quiet: there is another process for the copy.
    """

    def __init__(self, config: Config, run_dir: Path, log: MetricsLog, quiet: bool = False) -> None:
        self.log_file = log
        self._wandb = WandbRun(config, run_dir, quiet)

    def log(self, row: dict[str, Any]) -> None:
        """Write one row of metrics; absent figures (None) are left out of the copy."""
        self.log_file.append(row)
        self._wandb.log({key: value for key, value in row.items() if value is not None})

    def finish(self, result: dict[str, Any], exit_code: int = 0) -> None:
        """Close the copy with the final figures."""
        self._wandb.finish({key: value for key, value in result.items() if value is not None}, exit_code)


def log_sweep(tracking: TrackingConfig, folder: Path, table: str) -> None:
    """Write a sweep's table and plots into W&B, as one more run in the sweep's group; it can fail no sweep.

    Args:
        tracking: as the sweep's jobs have it; `disabled` writes nothing.
        folder: of the sweep, with its `plots/`.
        table: CSV, the first line being the names of the columns.
    """
    if tracking.mode == "disabled":
        return
    try:
        import wandb

        names, *rows = csv.reader(io.StringIO(table))
        with _start_run(tracking, folder, job_type="sweep", name=f"{folder.name}-results", tags=["sweep"]) as run:
            run.log({"sweep/results": wandb.Table(columns=[*names], data=rows)})
            for picture in sorted((folder / "plots").glob("*.png")):
                run.log({f"sweep/{picture.stem}": wandb.Image(str(picture))})
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"gvc: warning: W&B could not take the sweep's table ({reason})", file=sys.stderr)


def has_key() -> bool:
    """Return whether W&B has a key here, without asking its server or showing the key."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").removeprefix("https://").split("/")[0]
    try:
        saved = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        saved = None
    return bool(saved or os.environ.get("WANDB_API_KEY"))


def default_entity() -> str:
    """Ask W&B's server for the account's own user or team; raises whatever W&B raises without a login."""
    import wandb

    return str(wandb.Api(timeout=20).default_entity)


def login_state() -> str:
    """Say whether W&B has a key, without asking its server or showing the key."""
    import wandb

    key = "found" if has_key() else "none (offline runs need none)"
    mode = os.environ.get("WANDB_MODE")
    return f"wandb {wandb.__version__}, key {key}" + (f", WANDB_MODE={mode}" if mode else "")
