"""Which token belongs to which group, and at which slot: explicit, saved with the run, hashed into its checkpoint.

Letters: V vocabulary, G groups, S slots per group (group size).
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grouped_lm.config import GroupingConfig
from grouped_lm.errors import ConfigError


def default_group_size(vocab_size: int) -> int:
    """Return round(sqrt V), where G + S, and with it the memory of the paper's head, is least (method, "Memory")."""
    return max(1, round(math.sqrt(vocab_size)))


def check_group_size(group_size: int | None, vocab_size: int) -> int:
    """Return S, the default for None.

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

    token_to_group, token_to_slot: (V,) int64. A group may hold fewer than S tokens: its last slots are phantom
    and must get no probability, or the perplexity is wrong.
    """

    token_to_group: Tensor
    token_to_slot: Tensor
    n_group: int
    group_size: int

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return self.token_to_group.numel()

    def members(self) -> Tensor:
        """Return (G, S) int64 token ids, -1 at phantom slots."""
        table = torch.full((self.n_group * self.group_size,), -1, dtype=torch.int64)
        table[self.token_to_group * self.group_size + self.token_to_slot] = torch.arange(self.vocab_size)
        return table.view(self.n_group, self.group_size)

    def fingerprint(self) -> str:
        """Return a sha256 of the whole assignment."""
        digest = hashlib.sha256(f"{self.n_group},{self.group_size};".encode())
        digest.update(self.token_to_group.numpy().astype("<i8").tobytes())
        digest.update(self.token_to_slot.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def order_by_frequency(counts: Tensor) -> Tensor:
    """Return the (V,) token ids by their (V,) counts, most frequent first and ties by id."""
    return torch.argsort(counts, descending=True, stable=True)


def group_in_order(order: Tensor, group_size: int) -> Grouping:
    """Put every `group_size` consecutive tokens of `order` into a group.

    Args:
        order: (V,) int64, a permutation of the token ids.
        group_size: S in [1, V].
    """
    vocab_size = order.numel()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(vocab_size)
    return Grouping(
        token_to_group=rank // group_size,
        token_to_slot=rank % group_size,
        n_group=math.ceil(vocab_size / group_size),
        group_size=group_size,
    )


def build_grouping(
    config: GroupingConfig, vocab_size: int, group_size: int | None = None, counts: Tensor | None = None
) -> Grouping:
    """Build the grouping that `config` names.

    Args:
        config: `merge_rank` takes ids in their own order: GPT-2's ids are its 256 bytes, then its merges by rank,
            then end-of-text (arXiv 2411.06371, "Groups"); `frequency` takes the most frequent first, ties by id.
        vocab_size: V.
        group_size: S in [1, V]; None means round(sqrt V).
        counts: (V,) occurrences in the training text, for `frequency`.

    Raises:
        ConfigError: S outside [1, V], or no counts where they are needed.
    """
    size = check_group_size(group_size, vocab_size)
    order = torch.arange(vocab_size)
    if config.name == "random":
        order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(config.seed))
    elif config.name == "frequency":
        if counts is None:
            raise ConfigError("grouping=frequency needs the token counts of the training text")
        order = order_by_frequency(counts)
    return group_in_order(order, size)
