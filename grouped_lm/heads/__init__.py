"""Output layers, one file each, behind one interface (`grouped_lm.heads.base`)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX, GroupingConfig, parse_named
from grouped_lm.grouping import GROUPINGS, Grouping, parse_grouping
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
DEFAULT_HEAD = "shortlist"
"""The head that `gvc train`, `build_head` and `grouped_lm.compress` take; its settings are those of its config."""


def parse_head_config(values: dict[str, Any] | str) -> Any:
    """Return the config of a head from its name, or from a dict of its name and options.

    Raises:
        ConfigError: an unknown name or key, a value of another type or out of range.
    """
    schemas = {name: schema for name, (schema, _) in HEADS.items()}
    return parse_named(schemas, {"name": values} if isinstance(values, str) else values, "head")


def needs_grouping(config: Any) -> bool:
    """Return whether the head puts tokens into groups."""
    return hasattr(config, "group_size")


def needs_counts(config: Any, grouping: GroupingConfig) -> bool:
    """Return whether the head or its grouping is built from the training occurrences of the tokens."""
    from_counts = HEADS[config.name][1].needs_counts or getattr(config, "start", "zero") == "counts"
    return from_counts or (needs_grouping(config) and GROUPINGS[grouping.name].needs_counts)


def build_head(
    head: Any,
    n_embd: int,
    vocab_size: int,
    grouping: GroupingConfig | str | None = None,
    counts: Tensor | None = None,
    wte: Tensor | None = None,
    tokens: Callable[[], np.ndarray] | None = None,
    saved: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Head:
    """Build a head, freshly initialised from torch's global generator.

    Args:
        head: the name of a head in `HEADS`, or the config of one.
        n_embd: D.
        vocab_size: V.
        grouping: config or name of a grouping. None means the first of the head's `preferred_groupings` for which
            counts and text are given: `brown`, `frequency`, then `merge_rank` for `shortlist`, else `merge_rank`.
        counts: (V,) training occurrences, for groupings made from them and heads that sort their tokens.
        wte: (V, D) input embedding, for tied heads.
        tokens: returns the training text, (T,) ids, for groupings made from it.
        saved: the head's buffers in a checkpoint that is being loaded for use.
        options: further settings of the head, such as shortlist_size=1024.

    Raises:
        ConfigError: an unknown name or option, or a value out of range.
    """
    config = parse_head_config({"name": head} | options) if isinstance(head, str) else replace(head, **options)
    kind = HEADS[config.name][1]
    if grouping is None:
        grouping = _preferred_grouping(kind, counts is not None, tokens is not None)
    grouping = parse_grouping(grouping) if isinstance(grouping, str) else grouping
    return kind.build(config, HeadContext(n_embd, vocab_size, grouping, counts, wte, tokens, saved or {}))


def _preferred_grouping(head: type[Head], has_counts: bool, has_text: bool) -> str:
    for name in head.preferred_groupings:
        kind = GROUPINGS[name]
        if (has_counts or not kind.needs_counts) and (has_text or not kind.needs_text):
            return name
    raise AssertionError(f"the last of {head.__name__}.preferred_groupings needs counts or text")


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
