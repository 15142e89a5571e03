"""The files of a run, and the lock of its folder.

config.json  environment.json  inputs.json  grouping.json  tokenizer.json  metrics.jsonl  result.json  checkpoints/
wandb/  .hydra/
"""

import hashlib
import json
import shlex
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from grouped_lm.config import Config, check_schema, config_to_dict
from grouped_lm.data.text import SPLITS
from grouped_lm.errors import DriftError, RunFolderError
from grouped_lm.runs.checkpoint import list_checkpoints
from grouped_lm.runs.identity import changed_fields, config_identity, saved_identity
from grouped_lm.runs.inputs import Inputs, changed_inputs, describe_inputs, is_same_text
from grouped_lm.system.files import hold_lock, read_json_dict, write_json

COMPLETE, INTERRUPTED, FAILED = "complete", "interrupted", "failed"

LOCK_S = 0.5
"""Seconds to wait for the lock. A process that only looks whether the folder is in use holds it for a moment."""


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.job = path / "job.json"
        """The config that a sweep gave to this job, before the run wrote its own."""
        self.environment = path / "environment.json"
        self.inputs = path / "inputs.json"
        """Sizes and hashes of the text and tokenizer files that the run was made with."""
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.tokenizer = path / "tokenizer.json"
        """A tokenizer that was trained for this run: evaluation and samples need no training text."""
        self.grouping = path / "grouping.json"
        """A short description of the groups. The checkpoint has the group of every token."""

    @property
    def resume_command(self) -> str:
        """The command that continues the run, for a shell in the current folder."""
        here = Path.cwd()
        path = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        return f"gvc resume {shlex.quote(str(path))}"

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for one process, or raise a BusyError if another one trains here."""
        busy = f"{self.path} is in use by another gvc: wait for it, or give another hydra.run.dir"
        return hold_lock(self.path / ".lock", busy, LOCK_S)

    def read_config(self) -> dict[str, Any]:
        """Return config.json as a dict. The errors are those of `runs.load.load_config`, which returns a `Config`."""
        values = read_json_dict(self.config)
        if values is None or not is_saved_config(values):
            raise RunFolderError(f"{self.path} is not a run folder: no readable {self.config.name}")
        check_schema(values.get("schema_version"), self.path)
        return values

    def read_result(self) -> dict[str, Any] | None:
        """Return result.json, or None if there is none that can be read."""
        result = read_json_dict(self.result)
        return result if result is not None and isinstance(result.get("state"), str) else None

    def read_environment(self) -> dict[str, Any]:
        """Return environment.json, or an empty dict if there is none that can be read."""
        return read_json_dict(self.environment) or {}

    def check_same_run(self, config: Config, restarts: int = 0) -> None:
        """Refuse a folder that holds another run than `config`. After restarts train.resume does not count.

        Raises:
            DriftError: the folder holds another run. The message names the fields.
            RunFolderError: the folder holds a run, and train.resume=never.
        """
        if not self.config.exists():
            return
        if config.train.resume == "never" and not restarts:
            raise RunFolderError(
                f"{self.path} already holds a run: give another hydra.run.dir, or train.resume=auto to continue it"
            )
        if changed := self.changed_settings(saved_identity(self.read_config(), config), config):
            raise DriftError(f"{self.path} holds another run ({changed}): give another hydra.run.dir")
        self.check_same_inputs(config)

    def changed_settings(self, identity: dict[str, Any], config: Config) -> str:
        """Return how the identity of `config` differs from `identity`, as `changed_fields` does.

        A text with another path and the content of inputs.json is no difference.
        """
        now, saved = config_identity(config), read_json_dict(self.inputs) or {}
        moved = set()
        for key, split in ((f"data.{split}", split) for split in SPLITS):
            is_other = identity.get(key) != now.get(key) and identity.get("data.source") == now.get("data.source")
            if is_other and is_same_text(saved.get(key), config, split):
                moved.add(key)
        old, new = ({key: part[key] for key in part if key not in moved} for part in (identity, now))
        return changed_fields(old, new)

    def check_same_inputs(self, config: Config) -> None:
        """Refuse a trained run whose text or tokenizer file changed since.

        The run that it started from (`init_from`) counts only once it is complete: to continue, it needs no other run.

        Raises:
            DriftError: a file changed. The message names it.
            RunFolderError: inputs.json is damaged.
        """
        saved = read_json_dict(self.inputs)
        complete = (self.read_result() or {}).get("state") == COMPLETE
        if saved is None or not (complete or list_checkpoints(self.checkpoints)):
            return
        if not complete:
            saved.pop("init_from", None)
        now = describe_inputs(self.with_tokenizer(config))
        try:
            changed = changed_inputs(saved, now)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(f"{self.inputs} is damaged ({type(error).__name__}: {error})") from error
        if changed:
            raise DriftError(
                f"{self.path} was trained with other files, which have changed since: {changed}: "
                "restore them, or give another hydra.run.dir (hydra.sweep.dir) to train again"
            )

    def changed_text(self, split: str, source: dict[str, Any]) -> str:
        """Return how the text of a split differs from that of the training, "" if it does not or nobody knows.

        `source` describes the text as it is now, as the manifest of a prepared split does.
        """
        key = f"data.{split}"
        saved = (read_json_dict(self.inputs) or {}).get(key)
        return changed_inputs({key: saved}, {key: source}) if isinstance(saved, dict) else ""

    def with_tokenizer(self, config: Config) -> Config:
        """Return the config to read text with: the run's own tokenizer where its `tokenizer.file` is gone.

        The identity of the run keeps the name of that file.
        """
        file = config.tokenizer.file
        if file is None or Path(file).exists() or not self.tokenizer.exists():
            return config
        return replace(config, tokenizer=replace(config.tokenizer, file=str(self.tokenizer)))

    def mirror(self, config: Config, identity: dict[str, str]) -> Path | None:
        """Return the folder for copies of the checkpoints, or None without `train.mirror`.

        A hash of the identity keeps the jobs of several sweeps apart: many have the name `seed=0`.
        """
        if not config.train.mirror:
            return None
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Path(config.train.mirror).expanduser() / f"{self.path.resolve().name}-{digest[:8]}"

    def write_start(self, config: Config, environment: dict[str, Any], inputs: Inputs | None = None) -> None:
        """Write config.json, environment.json and, for a run that reads text here, inputs.json."""
        write_json(self.config, config_to_dict(config))
        write_json(self.environment, environment)
        if inputs is not None:
            earlier = read_json_dict(self.inputs) if list_checkpoints(self.checkpoints) else None
            write_json(self.inputs, inputs | {k: v for k, v in (earlier or {}).items() if k == "init_from"})

    def write_failure(self, reason: str, **details: Any) -> None:
        """Write into result.json that the run failed, and why."""
        write_json(self.result, {"state": FAILED, "reason": reason, **details})


def is_saved_config(values: dict[str, Any]) -> bool:
    """Return whether a JSON object is the config of a run, of any version."""
    return all(isinstance(values.get(part), dict) for part in ("model", "head", "train"))
