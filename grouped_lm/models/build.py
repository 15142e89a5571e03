"""From the config of a run to its model."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from grouped_lm.config import Config
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, RegularisedHead, build_head, needs_counts
from grouped_lm.models import build_body
from grouped_lm.models.lm import LanguageModel


def build_lm(
    config: Config,
    count_tokens: Callable[[], np.ndarray] | None = None,
    read_tokens: Callable[[], np.ndarray] | None = None,
    saved: Mapping[str, Tensor] | None = None,
    vocab_size: int | None = None,
) -> LanguageModel:
    """Build the model of a run, freshly initialised from torch's global generator.

    Args:
        config: the run.
        count_tokens: gives the (V,) occurrences in the training text; called only where head or grouping need them.
        read_tokens: gives the training text, (T,) ids; called only for context clusters.
        saved: the head's buffers in a checkpoint that is being loaded for use (`train_state.head_buffers`).
        vocab_size: V; None means the tokenizer's.

    Raises:
        ConfigError: the head does not fit the rest of the config, or its grouping cannot be built.
    """
    check_head(config)
    vocab_size = vocab_size or vocab_size_of(config.tokenizer)
    body = build_body(config.model, vocab_size)
    counts = None
    if count_tokens is not None and needs_counts(config.head, config.grouping):
        counts = torch.from_numpy(count_tokens())
    head = build_head(
        config.head,
        config.model.n_embd,
        vocab_size,
        grouping=config.grouping,
        counts=counts,
        wte=body.wte.weight if isinstance(body.wte, nn.Embedding) else None,
        tokens=read_tokens,
        saved=saved,
    )
    if isinstance(head, RegularisedHead):
        head.regularise(config.train.label_smoothing, config.train.z_loss)
    return LanguageModel(body, head)


def check_head(config: Config) -> None:
    """Refuse a head that the rest of the config does not go with.

    Raises:
        ConfigError: it is tied, and the input embedding is no table, or one in rows that only the dense head can share;
            or it lacks the losses that are to be added.
    """
    if config.model.embedding != "table" and getattr(config.head, "tied", False):
        raise ConfigError(
            f"model.embedding={config.model.embedding} has no row per token for head={config.head.name} to share: "
            "set head.tied=false"
        )
    if config.train.vocab_parallel and config.head.name != "dense":
        _check_rows(config)
    if (config.train.label_smoothing or config.train.z_loss) and not HEADS[config.head.name].head.regularised:
        allowed = ", ".join(name for name, (_, head) in HEADS.items() if head.regularised)
        raise ConfigError(
            f"train.label_smoothing and train.z_loss must be 0 for head={config.head.name}, "
            f"got {config.train.label_smoothing} and {config.train.z_loss}: they are defined for {allowed}"
        )


def _check_rows(config: Config) -> None:
    """Refuse a run of which `train.vocab_parallel` has no table to cut, or one that the head reads whole."""
    head = config.head
    if config.model.embedding != "table":
        raise ConfigError(
            "train.vocab_parallel=true finds no table with a row per token to cut with "
            f"model.embedding={config.model.embedding} and head={head.name}: leave it out"
        )
    if getattr(head, "tied", False):
        raise ConfigError(
            f"train.vocab_parallel=true leaves no process the whole table that head={head.name} shares: "
            "set head.tied=false, or take head=dense or one without such a table, as grouped"
        )


def count_params(model: LanguageModel) -> tuple[int, int]:
    """Return the parameters of the whole model and of the head alone; a tied table counts with the embedding."""
    body = {id(p) for p in model.body.parameters()}
    own = sum(p.numel() for p in model.head.parameters() if id(p) not in body)
    return sum(p.numel() for p in model.parameters()), own
