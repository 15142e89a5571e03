"""Output layers, one file each, behind one interface (`grouped_lm.heads.base`)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX, GroupingConfig, parse_named
from grouped_lm.grouping import BY_COUNT, Grouping
from grouped_lm.heads.adaptive import AdaptiveConfig, AdaptiveHead
from grouped_lm.heads.base import Head, HeadContext, HeadLoss
from grouped_lm.heads.class_full import ClassFullConfig, ClassFullHead
from grouped_lm.heads.dense import DenseConfig, DenseHead
from grouped_lm.heads.film import FilmConfig, FilmHead
from grouped_lm.heads.grouped import GroupedConfig, GroupedHead
from grouped_lm.heads.low_rank import LowRankConfig, LowRankHead
from grouped_lm.heads.sampled import SampledConfig, SampledHead
from grouped_lm.heads.shortlist import ShortlistConfig, ShortlistHead
from grouped_lm.heads.trim import TrimConfig, TrimHead
from grouped_lm.heads.two_level import TwoLevelHead

HEADS: dict[str, tuple[type, type[Head]]] = {
    "dense": (DenseConfig, DenseHead),
    "grouped": (GroupedConfig, GroupedHead),
    "film": (FilmConfig, FilmHead),
    "class_full": (ClassFullConfig, ClassFullHead),
    "shortlist": (ShortlistConfig, ShortlistHead),
    "adaptive": (AdaptiveConfig, AdaptiveHead),
    "low_rank": (LowRankConfig, LowRankHead),
    "sampled": (SampledConfig, SampledHead),
    "trim": (TrimConfig, TrimHead),
}
"""Every head, its schema and its class, by the name that commands and columns use."""
HEAD_CONFIGS: dict[str, type] = {name: schema for name, (schema, _) in HEADS.items()}
DEFAULT_HEAD = {
    "name": "shortlist",
    "shortlist_size": 256,
    "directions": 0,
    "shared_rows": 32768,
    "reserve": True,
    "start": "counts",
}
"""What `gvc train` takes, for `parse_head_config`, with `grouping=brown`. The defaults of `ShortlistConfig` are older:
checkpoints leave out settings that they did not know."""


def parse_head_config(values: dict[str, Any]) -> Any:
    """Return the config object of the head that `values["name"]` names, with every key and type checked.

    Raises:
        ConfigError: an unknown head or key, a value of another type or out of range.
    """
    return parse_named(HEAD_CONFIGS, values, "head")


def needs_grouping(config: Any) -> bool:
    """Return whether the head puts tokens into groups."""
    return hasattr(config, "group_size")


def needs_counts(config: Any, grouping: GroupingConfig) -> bool:
    """Return whether the head or its grouping is made from the training occurrences of the tokens."""
    from_counts = HEADS[config.name][1].needs_counts or getattr(config, "start", "zero") == "counts"
    return from_counts or (needs_grouping(config) and grouping.name in BY_COUNT)


def build_head(
    config: Any,
    n_embd: int,
    vocab_size: int,
    grouping: GroupingConfig | None = None,
    counts: Tensor | None = None,
    wte: Tensor | None = None,
    tokens: Callable[[], np.ndarray] | None = None,
    saved: Mapping[str, Tensor] | None = None,
) -> Head:
    """Build the head that `config` describes.

    Args:
        config: one of `HEAD_CONFIGS`.
        n_embd: D.
        vocab_size: V.
        grouping: how tokens are put into groups; None means by merge rank.
        counts: (V,) training occurrences, for groupings made from them and heads that sort their tokens.
        wte: (V, D) input embedding, for tied heads.
        tokens: gives the training text, (T,) ids, for groupings by the company that tokens keep.
        saved: the head's buffers in a checkpoint that is being loaded for use.
    """
    context = HeadContext(n_embd, vocab_size, grouping or GroupingConfig(), counts, wte, tokens, saved or {})
    return HEADS[config.name][1].build(config, context)


__all__ = [
    "DEFAULT_HEAD",
    "HEADS",
    "HEAD_CONFIGS",
    "IGNORE_INDEX",
    "AdaptiveConfig",
    "AdaptiveHead",
    "ClassFullConfig",
    "ClassFullHead",
    "DenseConfig",
    "DenseHead",
    "FilmConfig",
    "FilmHead",
    "GroupedConfig",
    "GroupedHead",
    "Grouping",
    "Head",
    "HeadContext",
    "HeadLoss",
    "LowRankConfig",
    "LowRankHead",
    "SampledConfig",
    "SampledHead",
    "ShortlistConfig",
    "ShortlistHead",
    "TrimConfig",
    "TrimHead",
    "TwoLevelHead",
    "build_head",
    "needs_counts",
    "needs_grouping",
    "parse_head_config",
]
