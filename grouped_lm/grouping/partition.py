"""A grouping: which token belongs to which group, and at which slot of it.

Letters: V vocabulary, G groups, S slots per group (group size).
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    """Return a description of a grouping for JSON: sizes, sha256, and the places of special tokens.

    Args:
        token_to_group: (V,) integers, -1 for tokens outside the groups.
        token_to_slot: (V,) integers.
        special: ids by name, such as end-of-text.
    """
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

    Args:
        token_to_group: (V,) integers, -1 for tokens outside the groups.
        token_to_slot: (V,) integers, in [0, S) for tokens in groups.
        n_group: G.
        group_size: S, at least the size of the largest group.
    """
    ids = torch.arange(token_to_group.numel(), device=token_to_group.device)
    table = torch.full((n_group + 1, max(1, group_size)), -1, dtype=torch.int64, device=ids.device)
    table[token_to_group, token_to_slot.masked_fill(token_to_group < 0, 0)] = ids  # group -1 is the last row
    return table[:-1, :group_size]


def order_by_frequency(counts: Tensor) -> Tensor:
    """Return the (V,) token ids sorted by their (V,) counts, most frequent first, ties by id."""
    return torch.argsort(counts, descending=True, stable=True)


def group_in_order(order: Tensor, group_size: int) -> Grouping:
    """Return the grouping that puts every `group_size` consecutive tokens of `order` into one group.

    Args:
        order: (V,) int64, a permutation of the token ids.
        group_size: S.
    """
    position = torch.empty_like(order)
    position[order] = torch.arange(order.numel())
    return Grouping(position // group_size, position % group_size, math.ceil(order.numel() / group_size), group_size)


def group_by_labels(order: Tensor, labels: Tensor) -> Grouping:
    """Return the grouping in which token `order[i]` is in group `labels[i]`; slots follow `order`.

    Args:
        order: (V,) int64, a permutation of the token ids.
        labels: (V,) int64 in [0, G); every group has a token.
    """
    token_to_group = torch.empty_like(order)
    token_to_group[order] = labels
    sizes = torch.bincount(labels)
    by_group = torch.argsort(labels, stable=True)
    token_to_slot = torch.empty_like(order)
    token_to_slot[order[by_group]] = torch.arange(order.numel()) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return Grouping(token_to_group, token_to_slot, n_group=sizes.numel(), group_size=int(sizes.max()))
