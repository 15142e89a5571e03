"""Load a run from its folder: its config, its tokenizer and its model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from grouped_lm.config import Config, TokenizerConfig, check_schema, config_from_dict, parse_fields
from grouped_lm.data.prepare import prepare_split
from grouped_lm.data.sources import parse_data_config
from grouped_lm.data.tokenizers.base import Tokenizer, vocab_size_of
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.errors import CheckpointError, ConfigError, DataError, RunFolderError
from grouped_lm.grouping import parse_grouping
from grouped_lm.heads import parse_head_config
from grouped_lm.models.lm import LanguageModel, build_lm
from grouped_lm.optim import parse_optim_config
from grouped_lm.prior.config import KneserNeyConfig
from grouped_lm.prior.head import PriorHead, build_mixed
from grouped_lm.prior.store import counted_text
from grouped_lm.runs.checkpoint import load_latest
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.plugins import load_plugins
from grouped_lm.runs.train_state import head_buffers, unpack_model
from grouped_lm.system.files import read_json_dict


def parse_head(values: Any) -> Any:
    """Return the config of a head, or of `head=kneser_ney`, from a dict of its name and options."""
    if isinstance(values, dict) and values.get("name") == KneserNeyConfig().name:
        return parse_fields(KneserNeyConfig, values, "head", " for head=kneser_ney")
    return parse_head_config(values)


PRIOR = "prior.safetensors"
"""File of a checkpoint with what a run has learnt about the mixture with its counts."""
PARSERS: dict[str, Callable[[Any], Any]] = {
    "data": parse_data_config,
    "head": parse_head,
    "grouping": parse_grouping,
    "optim": parse_optim_config,
}
"""Parts of a config whose schema depends on a name in them."""


def parse_config(values: dict[str, Any]) -> Config:
    """Return the config that `config_to_dict` turned into a dict. Wrong keys and values raise a ConfigError."""
    load_plugins()
    return config_from_dict(values, PARSERS)


def load_config(path: Path) -> Config:
    """Return the config of the run in the folder `path`.

    Raises:
        RunFolderError: this is no run folder, or its config is damaged.
        SchemaError: another version of gvc wrote it.
    """
    folder = RunFolder(path)
    values = folder.read_config()
    try:
        return parse_config(values)
    except ConfigError as error:
        raise RunFolderError(f"{folder.config} is damaged: {error}") from error


def load_run(path: str | Path, device: str = "cpu") -> tuple[LanguageModel, Tokenizer]:
    """Return the model of the run in the folder `path`, in evaluation mode on `device`, and its tokenizer.

    Raises:
        RunFolderError: this is no run folder, or its config is damaged.
        CheckpointError: it has no checkpoint that can be trusted.
    """
    path = Path(path)
    config = load_config(path)
    model, _ = load_model(path, config, torch.device(device))
    return model, build_tokenizer(own_tokenizer(path, config.tokenizer), config.data)


def read_job(path: Path) -> Config:
    """Return the config that a sweep wrote into the file `path`. The errors are those of `load_config`."""
    values = read_json_dict(path)
    if values is None:
        raise RunFolderError(f"{path.parent} holds no job")
    check_schema(values.get("schema_version"), path.parent)
    return parse_config(values)


def load_model(path: Path, config: Config, device: torch.device) -> tuple[LanguageModel, int]:
    """Return the model of the newest checkpoint of the run in `path`, in evaluation mode, and its step.

    Raises:
        CheckpointError: there is none, none can be trusted, or it is not the model that `config` describes.
    """
    if isinstance(config.head, KneserNeyConfig):
        raise CheckpointError(
            f"{path} counted n-grams and has no network: `gvc ls` and `gvc leaderboard` show its loss"
        )
    newest = load_latest(RunFolder(path).checkpoints, quarantine=False)
    if newest is None:
        raise CheckpointError(f"{path} has no checkpoint yet: train it first")
    step, files = newest
    vocab_size = vocab_size_of(config.tokenizer)
    table = vocab_size * config.model.n_embd if config.model.embedding == "table" else 0
    min_weights = 12 * config.model.n_layer * config.model.n_embd**2 + table
    if 4 * min_weights > sum(map(len, files.values())):  # a stranger's config must not make us allocate at will
        raise CheckpointError(f"{path}: its config describes a larger model than its checkpoint holds")
    buffers = head_buffers(files)  # with these the training text is not needed
    model = build_lm(config, lambda: np.zeros(vocab_size, dtype=np.int64), saved=buffers)
    state = unpack_model(files, model)
    if config.prior.is_on:
        model = _with_counts(path, config, model, files, state)
    return model.to(device).eval(), step


def _with_counts(
    path: Path, config: Config, model: LanguageModel, files: dict[str, bytes], state: dict[str, Any]
) -> LanguageModel:
    """Return the mixture of the model and the n-grams of its own training text, which may have to be counted again."""
    trained = load_config(path)
    if PRIOR not in files:
        raise CheckpointError(f"{path} was trained without a prior: leave prior={config.prior.name} out")
    tokenizer = own_tokenizer(path, trained.tokenizer)
    try:
        data = replace(trained.data, cache_dir=config.data.cache_dir)
        train = counted_text(prepare_split(data, tokenizer, "train"), trained.prior, build_tokenizer(tokenizer, data))
    except DataError as error:
        raise DataError(f"{path} has prior={trained.prior.name}, which counts its training text: {error}") from error
    if state["identity"]["train_tokens"] != train.manifest["sha256"]:
        raise CheckpointError(
            f"{path} has prior={trained.prior.name}, and its training text has changed: restore that, "
            "or give prior=none for the network alone"
        )
    mixed = build_mixed(model, trained, train)
    try:
        load_prior_state(mixed.head, load(files[PRIOR]))
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the state of its prior cannot be read: {error}") from error
    return mixed


def prior_state(head: PriorHead) -> dict[str, Tensor]:
    """Return what is learnt about a mixture, by name."""
    gate = {} if head.gate is None else head.gate.state_dict()
    return {"weight": head.weight} | {f"gate/{name}": tensor for name, tensor in gate.items()}


def load_prior_state(head: PriorHead, tensors: dict[str, Tensor]) -> None:
    """Copy what `prior_state` returned into a head; KeyError or RuntimeError for that of another one."""
    with torch.no_grad():
        for name, target in prior_state(head).items():
            target.copy_(tensors[name])


def own_tokenizer(path: Path, config: TokenizerConfig) -> TokenizerConfig:
    """Return the config with the tokenizer that was trained for the run in `path`: other text changes no token ids."""
    file = RunFolder(path).tokenizer
    return replace(config, file=str(file)) if config.name == "bpe" and file.exists() else config
