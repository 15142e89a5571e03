"""`tracking=tensorboard`: a copy of a run's metrics and config in `RUN/tensorboard`, for `tensorboard --logdir RUN`."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grouped_lm.config import Config, TrackingConfig, config_to_dict
from grouped_lm.errors import ConfigError
from grouped_lm.runs.identity import config_hash, config_identity

STEP = "trainer/step"
FOLDER = "tensorboard"
COMPARED = ("val/loss", "val/perplexity", "throughput/tokens_per_sec")
"""Metrics beside the config in TensorBoard's table of runs (HPARAMS)."""


def check_package(tracking: TrackingConfig) -> None:
    """Raise a ConfigError if the config asks for TensorBoard and its package is missing."""
    if tracking.backend == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("tracking=tensorboard needs tensorboard: pip install 'grouped-lm[tensorboard]'")


class TensorBoardRun:
    """Event files of one run, written by torch's `SummaryWriter`. An error is a warning, and the run continues without.

    Call `rewind` before `log`. With `quiet` nothing is written.
    """

    def __init__(self, config: Config, run_dir: Path, quiet: bool = False) -> None:
        self._config, self._folder, self._over = config, run_dir / FOLDER, quiet
        self._writer: Any = None

    def rewind(self, rows: list[dict[str, Any]]) -> None:
        """Write all curves again, from the `rows` of metrics.jsonl: steps that are done again are not doubled."""
        self._or_warn("start", self._rewind, rows)

    def log(self, row: dict[str, Any]) -> None:
        """Add the values of a row that are not None."""
        self._or_warn("log", self._write, row)

    def finish(self, result: dict[str, Any], exit_code: int = 0, name: str = "result") -> None:
        """Add the `result` as a table called `name`, and close the file."""
        self._or_warn("finish", self._finish, result, name)

    def _or_warn(self, what: str, action: Callable[..., None], *args: Any) -> None:
        try:
            if not self._over:
                action(*args)
        except Exception as error:  # tracking may never stop a run, whatever it raises
            self._over = True
            print(f"gvc: warning: TensorBoard could not {what} ({error}); continuing without it", file=sys.stderr)

    def _rewind(self, rows: list[dict[str, Any]]) -> None:
        earlier = list(self._folder.glob("events.out.tfevents.*"))
        self._open(purge_step=0)  # a TensorBoard that is open forgets what it has read
        self._write_config()
        for row in rows:
            self._write(row)
        self._writer.flush()
        for path in earlier:
            path.unlink()

    def _finish(self, result: dict[str, Any], name: str) -> None:
        if self._writer is None:
            self._open()
        rows = (f"| {key} | {value} |" for key, value in result.items() if not isinstance(value, dict | list | None))
        self._writer.add_text(name, "\n".join(["| key | value |", "|---|---|", *rows]))
        self._writer.close()

    def _open(self, **options: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because it takes a second

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self._folder), flush_secs=10, **options)

    def _write(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if value is not None and key != STEP:
                self._writer.add_scalar(key, value, row[STEP])

    def _write_config(self) -> None:
        from torch.utils.tensorboard.summary import hparams

        values = config_to_dict(self._config) | {"config_hash": config_hash(self._config)}
        settings = config_identity(self._config) | {"data.name": self._config.data.name}
        simple = {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in settings.items()}
        self._writer.add_text("config", f"```json\n{json.dumps(values, indent=2)}\n```")
        for summary in hparams(simple, dict.fromkeys(COMPARED, 0.0)):
            self._writer.file_writer.add_summary(summary)
