"""Groupings that cut an order of the tokens into groups.

Letters: V vocabulary, G groups, S slots per group.
"""

import math
from dataclasses import dataclass

import torch

from grouped_lm.config import GroupingConfig, check_range
from grouped_lm.grouping.inputs import GroupingInputs
from grouped_lm.grouping.partition import Grouping, group_by_labels, group_in_order, order_by_frequency


@dataclass(kw_only=True, slots=True)
class RandomConfig(GroupingConfig):
    """Config of `grouping=random`."""

    name: str = "random"
    seed: int = 0
    """Seed of the shuffle."""

    def __post_init__(self) -> None:
        check_range("grouping.seed", self.seed, 0, 2**63 - 1)


def by_merge_rank(_: GroupingConfig, inputs: GroupingInputs) -> Grouping:
    """Return groups of consecutive ids (arXiv 2411.06371, "Groups").

    The ids of GPT-2 are its 256 bytes, then its merges by rank, then end-of-text.
    """
    return group_in_order(torch.arange(inputs.vocab_size), inputs.group_size)


def by_random_order(config: RandomConfig, inputs: GroupingInputs) -> Grouping:
    """Return groups of a seeded shuffle of the ids."""
    order = torch.randperm(inputs.vocab_size, generator=torch.Generator().manual_seed(config.seed))
    return group_in_order(order, inputs.group_size)


def by_frequency(_: GroupingConfig, inputs: GroupingInputs) -> Grouping:
    """Return groups of similar training frequency: the most frequent S tokens share the first group."""
    return group_in_order(order_by_frequency(inputs.known_counts), inputs.group_size)


def by_sqrt_frequency(_: GroupingConfig, inputs: GroupingInputs) -> Grouping:
    """Return at most ceil(V / S) groups with equal shares of sum sqrt(count + 1).

    Frequent tokens are in small groups and rare tokens in large ones, so the sizes differ. Source: classes by the
    square root of the frequency, as in the RNNLM toolkit (Mikolov et al. 2011).
    """
    counts = inputs.known_counts
    order, n_group = order_by_frequency(counts), math.ceil(counts.numel() / inputs.group_size)
    share = (counts[order] + 1).double().sqrt()
    middle = (share.cumsum(0) - share / 2) / share.sum()
    labels = torch.unique((middle * n_group).long(), return_inverse=True)[1]  # one token may cover several shares
    return group_by_labels(order, labels)
