"""Start a run from the weights of another one (`init_from`), with a new optimizer and a new schedule."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from grouped_lm.config import Config
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.errors import CheckpointError, ConfigError
from grouped_lm.heads import needs_grouping
from grouped_lm.prior.config import KneserNeyConfig
from grouped_lm.runs.checkpoint import list_checkpoints, load_latest
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.identity import changed_fields, config_identity
from grouped_lm.runs.load import load_config, own_tokenizer

MAY_DIFFER = ("model.name", "model.dropout")
"""Settings of the model that change neither weights nor what they mean."""


def weights_settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide which weights a model has and what they mean."""
    grouping = ("grouping.",) if needs_grouping(config.head) else ()
    parts = ("model.", "head.", "tokenizer.name", "tokenizer.vocab_size", *grouping)
    return {
        key: value for key, value in config_identity(config).items() if key.startswith(parts) and key not in MAY_DIFFER
    }


def check_source(config: Config) -> None:
    """Check that the weights of the run `config.init_from` are those of a model of this config.

    Raises:
        RunFolderError, CheckpointError: there is no such run, or it has no checkpoint.
        ConfigError: its model, head, grouping or tokenizer is another.
    """
    source = Path(config.init_from or "")
    saved = load_config(source)
    if isinstance(saved.head, KneserNeyConfig):
        raise CheckpointError(
            f"init_from={source} counted n-grams and has no weights to start from: leave init_from out"
        )
    if not list_checkpoints(RunFolder(source).checkpoints):
        raise CheckpointError(f"init_from={source} has no checkpoint yet: train it first")
    if changed := changed_fields(weights_settings(saved), weights_settings(config)):
        raise ConfigError(
            f"init_from={source} has other weights than this run needs ({changed}): leave these settings as they are "
            "there, or leave init_from out"
        )
    if config.tokenizer.name == "bpe" and not _same_vocabulary(config, saved, source):
        raise ConfigError(
            f"init_from={source} has another tokenizer than this run: give tokenizer.file={RunFolder(source).tokenizer}"
        )


def _same_vocabulary(config: Config, saved: Config, source: Path) -> bool:
    """Return whether both runs have the same BPE. One that would be trained on another text counts as another."""
    if config.tokenizer.file is None and config_identity(replace(saved, data=config.data)) != config_identity(saved):
        return False
    own = build_tokenizer(own_tokenizer(source, saved.tokenizer), saved.data)
    return own.fingerprint == build_tokenizer(config.tokenizer, config.data).fingerprint


def read_start(config: Config, folder: RunFolder) -> dict[str, bytes]:
    """Return the files of a checkpoint with the grouping and weights to start with.

    A run that has a checkpoint of its own gets that one, so that it continues without the run that it came from.
    """
    try:
        own = load_latest(folder.checkpoints, quarantine=False)
    except CheckpointError:
        own = None  # all are damaged; a mirror may have others
    if own is not None:
        return own[1]
    check_source(config)
    newest = load_latest(RunFolder(Path(config.init_from or "")).checkpoints, quarantine=False)
    assert newest is not None  # `check_source` saw one
    return newest[1]
