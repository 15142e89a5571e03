"""The record of a run: metrics.jsonl always, W&B as a copy that can neither stop nor change it."""

import csv
import io
import json
import netrc
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from grouped_lm.config import Config, TrackingConfig, config_hash, config_to_dict

STEP_AXIS = "trainer/step"
METRIC_FAMILIES = ("train", "val", "throughput", "time", "memory")


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

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


class WandbRun:
    """One W&B run with the keys that dashboards rely on. Every call may fail; then W&B is over and the run goes on."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._run: Any = None
        if config.tracking.mode != "disabled":
            self._try("start", lambda: self._start(config, run_dir))

    def _start(self, config: Config, run_dir: Path) -> None:
        values = config_to_dict(config) | {"config_hash": config_hash(config)}
        tags = [config.model.name, config.head.name, config.data.name]
        tracking = config.tracking
        self._run = _start_run(
            tracking, run_dir, job_type=tracking.job_type, name=run_dir.name, tags=tags, config=values
        )
        for family in METRIC_FAMILIES:
            self._run.define_metric(f"{family}/*", step_metric=STEP_AXIS)

    def _try(self, what: str, action: Any) -> None:
        try:
            action()
        except Exception as error:  # tracking may never stop a run, whatever it raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"gvc: warning: W&B could not {what} ({reason}); going on without it", file=sys.stderr)
            self._run = None

    def log(self, row: dict[str, Any]) -> None:
        """Copy a row; the step is `trainer/step`, since W&B drops steps that are replayed after a resume."""
        if self._run is not None:
            self._try("log", lambda: self._run.log(row))

    def finish(self, result: dict[str, Any], exit_code: int = 0) -> None:
        """Write the final figures into the summary and close."""
        if self._run is None:
            return
        flat = {key: value for key, value in result.items() if not isinstance(value, dict | list)}
        self._try("write the summary", lambda: self._run.summary.update(flat))
        if self._run is not None:
            self._try("finish", lambda: self._run.finish(exit_code=exit_code))


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
    """The record and its copy."""

    def __init__(self, config: Config, run_dir: Path, log: MetricsLog) -> None:
        self.log_file = log
        self._wandb = WandbRun(config, run_dir)

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


def login_state() -> str:
    """Say whether W&B has a key, without asking its server or showing the key."""
    import wandb

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").removeprefix("https://").split("/")[0]
    try:
        saved = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        saved = None
    key = "found" if saved or os.environ.get("WANDB_API_KEY") else "none (offline runs need none)"
    mode = os.environ.get("WANDB_MODE")
    return f"wandb {wandb.__version__}, key {key}" + (f", WANDB_MODE={mode}" if mode else "")
