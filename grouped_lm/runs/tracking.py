"""Metrics of a run: metrics.jsonl is the record, and W&B or TensorBoard gets a copy.

Neither can stop or change a run.
"""

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
from grouped_lm.runs.tensorboard import TensorBoardRun

STEP_AXIS = "trainer/step"
METRIC_FAMILIES = ("train", "val", "throughput", "time", "memory")
QUIET_S = 3.0
"""Seconds without progress after which an online run stops waiting for W&B at its end."""
FINISH_S = 60.0
"""Longest time to wait for W&B at the end of a run. An offline run waits so long without progress (a busy disk)."""


class MetricsLog:
    """JSON lines. A run that resumes cuts them back to the length at its checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def size(self) -> int:
        """Return the number of bytes written so far."""
        return self._path.stat().st_size if self._path.exists() else 0

    def cut(self, size: int) -> None:
        """Remove all but the first `size` bytes."""
        if self.size() > size:
            os.truncate(self._path, size)

    def read(self) -> bytes:
        """Return the content so far."""
        return self._path.read_bytes() if self._path.exists() else b""

    def restore(self, content: bytes) -> None:
        """Write `content` back, unless the file is longer."""
        if self.size() < len(content):
            self._path.write_bytes(content)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows so far."""
        return [json.loads(line) for line in self.read().splitlines()]

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


class WandbRun:
    """One W&B run in a thread of its own. The training never waits for it.

    If any call fails, a warning is printed and the run continues without W&B. At the end the run waits while W&B makes
    progress every `QUIET_S`, at most `FINISH_S`. The rest stays in the run folder, and `wandb sync` sends it.
    """

    def __init__(self, config: Config, run_dir: Path, quiet: bool = False) -> None:
        self._run: Any = None
        self._over = quiet
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
        tags, job_type = [config.model.name, config.head.name, config.data.name], config.tracking.job_type
        name = os.environ.get("WANDB_NAME") or run_dir.name
        self._run = _start_run(config.tracking, run_dir, tags, job_type=job_type, name=name, config=values)
        for family in METRIC_FAMILIES:
            self._run.define_metric(f"{family}/*", step_metric=STEP_AXIS)

    def _work(self) -> None:
        while (item := self._actions.get()) is not None and not self._over:
            what, action = item
            try:
                action()
            except Exception as error:  # tracking may never stop a run, whatever it raises
                self._give_up(f"W&B could not {what} ({_first_line(error)})")
            self._done += 1

    def _give_up(self, reason: str) -> None:
        if not self._over:
            self._over = True
            print(f"gvc: warning: {reason}; continuing without it", file=sys.stderr)
            _end_service()

    def rewind(self, rows: list[dict[str, Any]]) -> None:
        """Do nothing: W&B draws the curves along `trainer/step`, however often a step is done."""

    def log(self, row: dict[str, Any]) -> None:
        """Copy the values of a row that are not None. Its step is `trainer/step`: W&B drops steps that are repeated."""
        values = {key: value for key, value in row.items() if value is not None}
        if not self._over:
            self._actions.put(("log", lambda: self._run.log(values)))

    def finish(self, result: dict[str, Any], exit_code: int = 0, name: str = "result") -> None:
        """Write the result into W&B's summary, and close the run. TensorBoard alone uses the `name`."""
        if self._over:
            return
        flat = {key: value for key, value in result.items() if not isinstance(value, dict | list | None)}
        self._actions.put(("write the summary", lambda: self._run.summary.update(flat)))
        self._actions.put(("finish", lambda: self._run.finish(exit_code=exit_code)))
        self._actions.put(None)
        started, done = time.monotonic(), -1
        while done != self._done and time.monotonic() - started < FINISH_S and self._thread.is_alive():
            done = self._done
            self._thread.join(self._quiet_s)
        if self._thread.is_alive():
            self._give_up("W&B does not answer; `wandb sync` can send the files in the run folder later")


def start_tracking(config: Config, run_dir: Path, quiet: bool = False) -> WandbRun | TensorBoardRun:
    """Return what gets a copy of the metrics of a run, by `tracking.backend`. With `quiet` it gets nothing."""
    kind = TensorBoardRun if config.tracking.backend == "tensorboard" else WandbRun
    return kind(config, run_dir, quiet or config.tracking.mode == "disabled")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _end_service() -> None:
    """End W&B's own process. Otherwise its exit hook in this process waits for a server that does not answer."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            name, rest = status.read_text().split("(", 1)[1].rsplit(")", 1)
            if name.startswith(("wandb-core", "gpu_stats")) and int(rest.split()[1]) == os.getpid():
                os.kill(int(status.parent.name), signal.SIGKILL)

    def teardown() -> None:
        import wandb

        with contextlib.suppress(Exception):  # its process is dead
            wandb.teardown()

    thread = threading.Thread(target=teardown, daemon=True)
    thread.start()
    thread.join(1.0)


def _load() -> None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry waits at exit for a server that hangs
    import wandb  # noqa: F401, a step of its own: it takes a second


def _start_run(tracking: TrackingConfig, folder: Path, tags: list[str], **kwargs: Any) -> Any:
    """Start or resume the W&B run of `folder`, whose id is kept there. `kwargs` are those of `wandb.init`."""
    import wandb  # here, because it takes a second, which `tracking=none` need not wait

    saved_id = folder / "wandb_id"
    if not saved_id.exists():
        saved_id.write_text(secrets.token_hex(4), encoding="utf-8")
    own_tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    place = Path(os.environ.get("WANDB_DIR") or folder)
    place.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        id=saved_id.read_text(encoding="utf-8"),
        resume="allow",
        mode=tracking.mode,  # type: ignore[arg-type]
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        tags=sorted({"paper-repro", *tags, *(tracking.tags or own_tags)}),
        dir=str(place.resolve()),  # W&B's service may run in another folder
        settings=wandb.Settings(init_timeout=tracking.init_timeout_s, silent=True, console="off"),
        **kwargs,
    )


def log_sweep(tracking: TrackingConfig, folder: Path, table: str) -> None:
    """Write the CSV `table` and the `plots/` of a sweep's folder to W&B, as one more run of its group.

    A failure is a warning.
    """
    if tracking.mode == "disabled" or tracking.backend != "wandb":
        return
    try:
        import wandb

        names, *rows = csv.reader(io.StringIO(table))
        with _start_run(tracking, folder, job_type="sweep", name=f"{folder.name}-results", tags=["sweep"]) as run:
            run.log({"sweep/results": wandb.Table(columns=[*names], data=rows)})
            for picture in sorted((folder / "plots").glob("*.png")):
                run.log({f"sweep/{picture.stem}": wandb.Image(str(picture))})
    except Exception as error:
        print(f"gvc: warning: W&B could not take the sweep's table ({_first_line(error)})", file=sys.stderr)


def has_key() -> bool:
    """Return whether this machine has a W&B key. The server is not asked."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").removeprefix("https://").split("/")[0]
    try:
        saved = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        saved = None
    return bool(saved or os.environ.get("WANDB_API_KEY"))


def default_entity() -> str:
    """Return the user or team of the account, as W&B's server says. Without a login W&B raises its own error."""
    import wandb

    return str(wandb.Api(timeout=20).default_entity)


def login_state() -> str:
    """Return one line on W&B: its version, whether there is a key, and its mode."""
    import wandb

    key = "found" if has_key() else "none (offline runs need none)"
    mode = os.environ.get("WANDB_MODE")
    return f"wandb {wandb.__version__}, key {key}" + (f", WANDB_MODE={mode}" if mode else "")
