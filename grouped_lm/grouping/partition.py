"""A grouping: which token belongs to which group, and at which slot of it; and the groupings made by sorting tokens.

Letters: V vocabulary, G groups, S slots per group (group size), T tokens of the training text.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_lm.config import GroupingConfig, check_fields, setting
from grouped_lm.errors import ConfigError


def default_group_size(vocab_size: int) -> int:
    """Return round(sqrt V). It makes G + S, and so the memory of the paper's head, smallest (method, "Memory")."""
    return max(1, round(math.sqrt(vocab_size)))


def check_group_size(group_size: int | None, vocab_size: int) -> int:
    """Return S; None means the default.

    Raises:
        ConfigError: S outside [1, V].
    """
    size = default_group_size(vocab_size) if group_size is None else group_size
    if not 1 <= size <= vocab_size:
        raise ConfigError(f"head.group_size must be in [1, {vocab_size}] for this tokenizer, got {size}")
    return size


@dataclass(frozen=True, eq=False)
class Grouping:
    """A partition of V tokens into G groups of at most S slots.

    A group may hold fewer than S tokens. Its last slots are then padding. Padding must get no probability, or the
    perplexity is wrong.
    """

    token_to_group: Tensor
    """(V,) int64 in [0, G)."""
    token_to_slot: Tensor
    """(V,) int64 in [0, S)."""
    n_group: int
    """G."""
    group_size: int
    """S."""

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return self.token_to_group.numel()

    def fingerprint(self) -> str:
        """Return the sha256 of the whole assignment."""
        digest = hashlib.sha256(f"{self.n_group},{self.group_size};".encode())
        digest.update(self.token_to_group.numpy().astype("<i8").tobytes())
        digest.update(self.token_to_slot.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def describe_groups(token_to_group: Tensor, token_to_slot: Tensor, special: dict[str, int]) -> dict[str, Any]:
    """Return a description of a grouping for JSON: sizes, sha256, and the places of special tokens, given by name."""
    groups, slots = token_to_group.cpu(), token_to_slot.cpu()
    sizes = torch.bincount(groups[groups >= 0])
    return {
        "vocab_size": groups.numel(),
        "outside_groups": int((groups < 0).sum()),
        "n_group": sizes.numel(),
        "smallest_group": int(sizes.min()) if sizes.numel() else None,
        "largest_group": int(sizes.max()) if sizes.numel() else None,
        "sha256": Grouping(groups, slots, sizes.numel(), int(slots.max()) + 1).fingerprint(),
        "special_tokens": {
            name: {"id": i, "group": int(groups[i]), "slot": int(slots[i])} for name, i in special.items()
        },
    }


def group_members(token_to_group: Tensor, token_to_slot: Tensor, n_group: int, group_size: int) -> Tensor:
    """Return the (G, S) int64 token ids of every group, -1 at padding slots.

    The (V,) groups are -1 for tokens outside the groups; S is at least the size of the largest group.
    """
    ids = torch.arange(token_to_group.numel(), device=token_to_group.device)
    table = torch.full((n_group + 1, max(1, group_size)), -1, dtype=torch.int64, device=ids.device)
    table[token_to_group, token_to_slot.masked_fill(token_to_group < 0, 0)] = ids  # group -1 is the last row
    return table[:-1, :group_size]


@dataclass(frozen=True, eq=False)
class GroupingInputs:
    """What a grouping is built from, besides its own config."""

    vocab_size: int  # V, the number of tokens to group
    group_size: int  # S, in [1, V]
    counts: Tensor  # (V,) occurrences in the training text; zeros for groupings that do not need them
    text: np.ndarray[Any, Any]  # (T,) ids of the training text; empty for groupings that do not need it
    ids: Tensor  # (V,) ids in the text of the tokens to group
    equal_sizes: bool = True
    """Whether clusters must have equal sizes, as a layer of S slots that all groups share needs them."""


def order_by_frequency(counts: Tensor) -> Tensor:
    """Return the (V,) token ids sorted by their (V,) counts, most frequent first, ties by id."""
    return torch.argsort(counts, descending=True, stable=True)


def group_in_order(order: Tensor, group_size: int) -> Grouping:
    """Return the grouping that puts every `group_size` consecutive tokens of `order` into one group.

    The (V,) `order` is a permutation of the token ids.
    """
    position = torch.empty_like(order)
    position[order] = torch.arange(order.numel())
    return Grouping(position // group_size, position % group_size, math.ceil(order.numel() / group_size), group_size)


def group_by_labels(order: Tensor, labels: Tensor) -> Grouping:
    """Return the grouping in which token `order[i]` is in group `labels[i]`; slots follow `order`.

    The (V,) `order` is a permutation of the token ids. The (V,) `labels` are in [0, G); every group has a token.
    """
    token_to_group = torch.empty_like(order)
    token_to_group[order] = labels
    sizes = torch.bincount(labels)
    by_group = torch.argsort(labels, stable=True)
    token_to_slot = torch.empty_like(order)
    token_to_slot[order[by_group]] = torch.arange(order.numel()) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return Grouping(token_to_group, token_to_slot, n_group=sizes.numel(), group_size=int(sizes.max()))


@dataclass(kw_only=True, slots=True)
class SeededConfig(GroupingConfig):
    """Config of `grouping=random` and `grouping=kmeans`."""

    name: str = "random"
    seed: int = setting(0, 0, 2**63 - 1)
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        check_fields(self, "grouping")


def by_merge_rank(_: GroupingConfig, inputs: GroupingInputs) -> Grouping:
    """Return groups of consecutive ids (arXiv 2411.06371, "Groups").

    The ids of GPT-2 are its 256 bytes, then its merges by rank, then end-of-text.
    """
    return group_in_order(torch.arange(inputs.vocab_size), inputs.group_size)


def by_random_order(config: SeededConfig, inputs: GroupingInputs) -> Grouping:
    """Return groups of a seeded shuffle of the ids."""
    order = torch.randperm(inputs.vocab_size, generator=torch.Generator().manual_seed(config.seed))
    return group_in_order(order, inputs.group_size)


def by_frequency(_: GroupingConfig, inputs: GroupingInputs) -> Grouping:
    """Return groups of similar training frequency: the most frequent S tokens share the first group."""
    return group_in_order(order_by_frequency(inputs.counts), inputs.group_size)


def by_sqrt_frequency(_: GroupingConfig, inputs: GroupingInputs) -> Grouping:
    """Return at most ceil(V / S) groups with equal shares of sum sqrt(count + 1).

    Frequent tokens are in small groups and rare tokens in large ones, so the sizes differ. Source: classes by the
    square root of the frequency, as in the RNNLM toolkit (Mikolov et al. 2011).
    """
    counts = inputs.counts
    order, n_group = order_by_frequency(counts), math.ceil(counts.numel() / inputs.group_size)
    share = (counts[order] + 1).double().sqrt()
    middle = (share.cumsum(0) - share / 2) / share.sum()
    labels = torch.unique((middle * n_group).long(), return_inverse=True)[1]  # one token may cover several shares
    return group_by_labels(order, labels)
