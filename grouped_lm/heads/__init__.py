"""Output layers, one file each, behind one interface (`grouped_lm.heads.base`)."""

import dataclasses
import difflib
from typing import Any

from torch import Tensor

from grouped_lm.config import GroupingConfig
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import Grouping, build_grouping
from grouped_lm.heads.base import IGNORE_INDEX, Head, HeadLoss
from grouped_lm.heads.dense import DenseConfig, DenseHead
from grouped_lm.heads.film import FilmConfig, FilmHead
from grouped_lm.heads.grouped import GroupedConfig, GroupedHead
from grouped_lm.heads.two_level import TwoLevelHead

HEAD_CONFIGS: dict[str, type] = {"dense": DenseConfig, "grouped": GroupedConfig, "film": FilmConfig}
"""Every head by the name that commands and columns use."""


def parse_head_config(values: dict[str, Any]) -> Any:
    """Return the config object of the head that `values["name"]` names, with every key and type checked.

    Raises:
        ConfigError: an unknown head or key, a value of another type or out of range.
    """
    name = values.get("name")
    if name not in HEAD_CONFIGS:
        raise ConfigError(f"head must be one of {', '.join(HEAD_CONFIGS)}, got {name!r}")
    schema = HEAD_CONFIGS[str(name)]
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean head.{near[0]}?" if near else f" ({name} has {', '.join(fields)})"
            raise ConfigError(f"unknown key head.{key} for head={name}{hint}")
        kinds: Any = fields[key].type
        if isinstance(value, bool) != (kinds is bool) or not isinstance(value, kinds):
            raise ConfigError(f"head.{key} must be {getattr(kinds, '__name__', kinds)}, got {value!r}")
    return schema(**values)


def needs_grouping(config: Any) -> bool:
    """Return whether the head puts tokens into groups."""
    return hasattr(config, "group_size")


def build_head(
    config: Any,
    n_embd: int,
    vocab_size: int,
    grouping: GroupingConfig | None = None,
    counts: Tensor | None = None,
    wte: Tensor | None = None,
) -> Head:
    """Build the head that `config` describes.

    Args:
        config: one of `HEAD_CONFIGS`.
        n_embd: D.
        vocab_size: V.
        grouping: how tokens are put into groups; None means by merge rank.
        counts: (V,) training occurrences, for groupings by frequency.
        wte: (V, D) input embedding, for tied heads.
    """
    if isinstance(config, DenseConfig):
        return DenseHead(config, n_embd, vocab_size, wte)
    groups = build_grouping(grouping or GroupingConfig(), vocab_size, config.group_size, counts)
    if isinstance(config, FilmConfig):
        return FilmHead(config, n_embd, groups)
    return GroupedHead(config, n_embd, groups)


__all__ = [
    "HEAD_CONFIGS",
    "IGNORE_INDEX",
    "DenseConfig",
    "DenseHead",
    "FilmConfig",
    "FilmHead",
    "GroupedConfig",
    "GroupedHead",
    "Grouping",
    "Head",
    "HeadLoss",
    "TwoLevelHead",
    "build_head",
    "needs_grouping",
    "parse_head_config",
]
