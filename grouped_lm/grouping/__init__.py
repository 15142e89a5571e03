"""Groupings of tokens: one registry, one function to build them.

A new grouping is a function and a line in `GROUPINGS`; its options are a dataclass of its own.
Letters: V vocabulary, G groups, S slots per group (group size), T tokens of the training text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_lm.config import GroupingConfig, parse_named
from grouped_lm.errors import ConfigError
from grouped_lm.grouping.clusters import by_brown_clusters, by_kmeans_clusters
from grouped_lm.grouping.partition import (
    Grouping,
    GroupingInputs,
    SeededConfig,
    by_frequency,
    by_merge_rank,
    by_random_order,
    by_sqrt_frequency,
    check_group_size,
    default_group_size,
    describe_groups,
    group_members,
    order_by_frequency,
)

Text = Callable[[], "np.ndarray[Any, Any]"]
"""Returns the training text, (T,) ids. It is called only where the text is needed."""


@dataclass(frozen=True)
class GroupingKind:
    """A registered grouping."""

    build: Callable[[Any, GroupingInputs], Grouping]  # Takes the config and the inputs
    schema: type[GroupingConfig] = GroupingConfig  # Dataclass of its config
    needs_counts: bool = False  # Whether it is built from the training occurrences of the tokens
    needs_text: bool = False  # Whether it is built from the training text


GROUPINGS: dict[str, GroupingKind] = {
    "merge_rank": GroupingKind(by_merge_rank),
    "frequency": GroupingKind(by_frequency, needs_counts=True),
    "sqrt_frequency": GroupingKind(by_sqrt_frequency, needs_counts=True),
    "kmeans": GroupingKind(by_kmeans_clusters, SeededConfig, needs_counts=True, needs_text=True),
    "brown": GroupingKind(by_brown_clusters, needs_counts=True, needs_text=True),
    "random": GroupingKind(by_random_order, SeededConfig),
}
"""Every grouping, by the name that configs and tables use."""


def parse_grouping(values: dict[str, Any] | str | GroupingConfig) -> GroupingConfig:
    """Return the config of a grouping from its name, a dict of its name and options, or another config.

    A `GroupingConfig` whose name belongs to a grouping with options gets the defaults of those.

    Raises:
        ConfigError: an unknown name or key, a value of another type or out of range.
    """
    schemas = {name: kind.schema for name, kind in GROUPINGS.items()}
    if isinstance(values, GroupingConfig):
        if isinstance(values, schemas.get(values.name, str)):
            return values
        values = values.name
    config: GroupingConfig = parse_named(schemas, {"name": values} if isinstance(values, str) else values, "grouping")
    return config


def build_grouping(
    config: GroupingConfig | str,
    vocab_size: int,
    group_size: int | None = None,
    counts: Tensor | None = None,
    tokens: Text | None = None,
    ids: Tensor | None = None,
    equal_sizes: bool = True,
) -> Grouping:
    """Build a grouping.

    Args:
        config: config or name of a grouping in `GROUPINGS`.
        vocab_size: V, the number of tokens to group.
        group_size: S in [1, V]; None means round(sqrt V).
        counts: (V,) occurrences in the training text, for all but `merge_rank` and `random`.
        tokens: returns the (T,) ids of the training text, for `kmeans` and `brown`.
        ids: (V,) ids in the text of the tokens to group; None means 0 to V - 1.
        equal_sizes: whether clusters have equal sizes. Otherwise tokens that never occur get groups of their own.

    Raises:
        ConfigError: S outside [1, V], or counts or text are missing, or counts or ids have another shape.
    """
    if vocab_size < 1:
        raise ConfigError(f"vocab_size must be 1 or more, got {vocab_size}")
    for name, values in (("counts", counts), ("ids", ids)):
        if values is not None and values.shape != (vocab_size,):
            raise ConfigError(
                f"{name} must have shape ({vocab_size},), one number per token, got {tuple(values.shape)}"
            )
    size = check_group_size(group_size, vocab_size)
    config = parse_grouping(config)
    kind = GROUPINGS[config.name]
    if kind.needs_counts and counts is None:
        raise ConfigError(f"grouping={config.name} needs the token counts of the training text")
    if kind.needs_text and tokens is None and counts is not None and counts.any():
        raise ConfigError(f"grouping={config.name} needs the training text")
    text = tokens() if kind.needs_text and tokens is not None else np.empty(0, np.int64)
    counts = torch.zeros(vocab_size) if counts is None else counts
    ids = torch.arange(vocab_size) if ids is None else ids
    return kind.build(config, GroupingInputs(vocab_size, size, counts, text, ids, equal_sizes))


__all__ = [
    "GROUPINGS",
    "Grouping",
    "GroupingConfig",
    "GroupingInputs",
    "GroupingKind",
    "SeededConfig",
    "Text",
    "build_grouping",
    "check_group_size",
    "default_group_size",
    "describe_groups",
    "group_members",
    "order_by_frequency",
    "parse_grouping",
]
