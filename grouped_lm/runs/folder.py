"""What a run leaves behind, and where: config, environment, metrics, result, checkpoints.

config.json  environment.json  grouping.json  tokenizer.json  metrics.jsonl  result.json  checkpoints/  wandb/  .hydra/
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from grouped_lm.config import Config, TokenizerConfig, config_to_dict
from grouped_lm.data.tokenizers.base import EOT_TEXT, build_tokenizer, vocab_size_of
from grouped_lm.data.tokenizers.bpe import BPETokenizer
from grouped_lm.errors import BusyError, CheckpointError, ConfigError, DriftError, RunFolderError
from grouped_lm.grouping import describe_groups
from grouped_lm.heads import Head, config_from_saved
from grouped_lm.models.build import build_lm
from grouped_lm.models.lm import LanguageModel
from grouped_lm.runs.checkpoint import load_latest
from grouped_lm.runs.identity import changed_fields, config_identity
from grouped_lm.runs.train_state import head_buffers, unpack_model
from grouped_lm.system.files import write_json

COMPLETE, INTERRUPTED, FAILED = "complete", "interrupted", "failed"

LOCK_S = 0.5
"""Who only asks whether a folder is held, as `gvc ls` does, holds it for a moment."""


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.job = path / "job.json"
        """A sweep's copy of the config, there before the run has written its own."""
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.tokenizer = path / "tokenizer.json"
        """One trained for this run: evaluation and samples need no training text."""
        self.grouping = path / "grouping.json"
        """What is in which group, in short; the checkpoint has it token by token."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; the kernel lets go when the holder dies.

        Raises:
            BusyError: another process trains here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=LOCK_S):
                yield
        except Timeout as error:
            raise BusyError(
                f"{self.path} is in use by another gvc: wait for it, or give another hydra.run.dir"
            ) from error

    def read_config(self) -> Config:
        """Return the saved config.

        Raises:
            RunFolderError: this is no run folder, or its config is none that this gvc can read.
        """
        try:
            return config_from_saved(json.loads(self.config.read_text(encoding="utf-8")))
        except ConfigError as error:
            raise RunFolderError(f"{self.config} is damaged, or of another gvc: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunFolderError(f"{self.path} is not a run folder: no readable {self.config.name}") from error

    def read_result(self) -> dict[str, Any] | None:
        """Return result.json, None where there is none that can be read."""
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return result if isinstance(result, dict) and isinstance(result.get("state"), str) else None

    def read_environment(self) -> dict[str, Any]:
        """Return environment.json, nothing where there is none that can be read."""
        try:
            found = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def check_same_run(self, config: Config, restarts: int = 0) -> None:
        """Refuse a folder that holds something else than `config`.

        Args:
            config: the run.
            restarts: after a restart the run that it holds is this one, whatever train.resume says.

        Raises:
            DriftError: it holds another run; the message names the fields.
            RunFolderError: it holds a run, and train.resume=never.
        """
        if not self.config.exists():
            return
        if config.train.resume == "never" and not restarts:
            raise RunFolderError(
                f"{self.path} already holds a run: give another hydra.run.dir, or train.resume=auto to go on with it"
            )
        changed = changed_fields(
            config_identity(config_to_dict(self.read_config())), config_identity(config_to_dict(config))
        )
        if changed:
            raise DriftError(f"{self.path} holds another run ({changed}): give another hydra.run.dir")

    def mirrors(self, config: Config, identity: dict[str, str]) -> list[Path]:
        """Return where the run's checkpoints are copied to, and the name by which older copies go; [] without copies.

        Jobs of many sweeps are called `seed=0`: the hash keeps those of different runs apart.
        """
        if not config.train.mirror:
            return []
        place, name = Path(config.train.mirror).expanduser(), self.path.resolve().name
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return [place / f"{name}-{digest[:8]}", place / name]

    def load_model(self, config: Config, device: torch.device) -> tuple[LanguageModel, int]:
        """Return the model of the newest checkpoint, in evaluation mode, and its step.

        Raises:
            CheckpointError: there is none, none can be trusted, or it is not the model that `config` describes.
        """
        found = load_latest(self.checkpoints, quarantine=False)
        if found is None:
            raise CheckpointError(f"{self.path} has no checkpoint yet: train it first")
        vocab_size = vocab_size_of(config.tokenizer)
        table = vocab_size * config.model.n_embd if config.model.embedding == "table" else 0
        least = 12 * config.model.n_layer * config.model.n_embd**2 + table
        if 4 * least > sum(map(len, found[1].values())):  # a stranger's config must not make us allocate at will
            raise CheckpointError(f"{self.path}: its config describes a larger model than its checkpoint holds")
        known = head_buffers(found[1])  # so the training text is not needed
        model = build_lm(config, lambda: np.zeros(vocab_size, dtype=np.int64), saved=known)
        unpack_model(found[1], model)
        return model.to(device).eval(), found[0]

    def write_tokens(self, config: Config, head: Head) -> None:
        """Write the tokenizer, where it was trained on this run's text, and a description of the groups, if any."""
        tokenizer = build_tokenizer(config.tokenizer, config.data)
        if isinstance(tokenizer, BPETokenizer):
            tokenizer.save(self.tokenizer)
        known = dict(head.named_buffers())
        if "token_to_group" in known:
            special = {EOT_TEXT: tokenizer.eot_id}
            write_json(self.grouping, describe_groups(known["token_to_group"], known["token_to_slot"], special))

    def own_tokenizer(self, config: TokenizerConfig) -> TokenizerConfig:
        """Return the config with the run's own trained tokenizer, if it has one: other text changes no ids."""
        return replace(config, file=str(self.tokenizer)) if config.name == "bpe" and self.tokenizer.exists() else config

    def write_start(self, config: Config, environment: dict[str, Any]) -> None:
        """Write what is known before the first step."""
        write_json(self.config, config_to_dict(config))
        write_json(self.environment, environment)


def failed(reason: str) -> dict[str, Any]:
    """Return the result of a run that did not end well."""
    return {"state": FAILED, "reason": reason}
