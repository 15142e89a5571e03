"""Which token belongs to which group, and at which slot: explicit, saved with the run, hashed into its checkpoint.

Letters: V vocabulary, G groups, S slots per group (group size).
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_lm.config import GroupingConfig
from grouped_lm.errors import ConfigError
from grouped_lm.grouping.clusters import MAX_WORDS, brown_clusters, kmeans_clusters


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

    def fingerprint(self) -> str:
        """Return a sha256 of the whole assignment."""
        digest = hashlib.sha256(f"{self.n_group},{self.group_size};".encode())
        digest.update(self.token_to_group.numpy().astype("<i8").tobytes())
        digest.update(self.token_to_slot.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def describe_groups(token_to_group: Tensor, token_to_slot: Tensor, special: dict[str, int]) -> dict[str, Any]:
    """Return what people ask of a grouping, ready for JSON: sizes, a sha256 of all of it, where special tokens are.

    Args:
        token_to_group: (V,) int64, -1 for tokens outside the groups.
        token_to_slot: (V,) int64.
        special: ids by name, such as end-of-text.
    """
    groups, slots = token_to_group.cpu(), token_to_slot.cpu()
    sizes = torch.bincount(groups[groups >= 0])
    places = {name: {"id": i, "group": int(groups[i]), "slot": int(slots[i])} for name, i in special.items()}
    return {
        "vocab_size": groups.numel(),
        "outside_groups": int((groups < 0).sum()),
        "n_group": sizes.numel(),
        "smallest_group": int(sizes.min()) if sizes.numel() else None,
        "largest_group": int(sizes.max()) if sizes.numel() else None,
        "sha256": Grouping(groups, slots, sizes.numel(), int(slots.max()) + 1).fingerprint(),
        "special_tokens": places,
    }


def group_members(token_to_group: Tensor, token_to_slot: Tensor, n_group: int, group_size: int) -> Tensor:
    """Return (G, S) int64 token ids, -1 at phantom slots.

    Args:
        token_to_group: (V,) int64, -1 for tokens in no group.
        token_to_slot: (V,) int64 in [0, S) for the others.
        n_group: G.
        group_size: S, the largest group's or more.
    """
    ids = torch.arange(token_to_group.numel(), device=token_to_group.device)
    table = torch.full((n_group + 1, max(1, group_size)), -1, dtype=torch.int64, device=ids.device)
    table[token_to_group, token_to_slot.masked_fill(token_to_group < 0, 0)] = ids  # group -1 is the last row
    return table[:-1, :group_size]


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


def group_by_sqrt_frequency(counts: Tensor, group_size: int) -> Grouping:
    """Put tokens by frequency into ceil(V / S) groups, at most, that hold equal shares of sum sqrt(count + 1).

    So frequent tokens stand in small groups and rare ones in large ones: sizes are unequal. Source: classes by the
    square root of the frequency, as in the RNNLM toolkit (Mikolov et al. 2011).
    """
    order, n_group = order_by_frequency(counts), math.ceil(counts.numel() / group_size)
    share = (counts[order] + 1).double().sqrt()
    middle = (share.cumsum(0) - share / 2) / share.sum()
    groups = torch.unique((middle * n_group).long(), return_inverse=True)[1]  # one token may span several shares
    return group_as_told(order, groups)


def group_as_told(order: Tensor, groups: Tensor) -> Grouping:
    """Put the tokens of `order` into the group that `groups` has at the same place, slots in that order.

    Args:
        order: (V,) int64, a permutation of the token ids.
        groups: (V,) int64 in [0, G), none of them empty.
    """
    token_to_group = torch.empty_like(order)
    token_to_group[order] = groups
    sizes = torch.bincount(groups)
    by_group = torch.argsort(groups, stable=True)
    token_to_slot = torch.empty_like(order)
    token_to_slot[order[by_group]] = torch.arange(order.numel()) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return Grouping(token_to_group, token_to_slot, n_group=sizes.numel(), group_size=int(sizes.max()))


def group_by_company(
    config: GroupingConfig,
    group_size: int,
    counts: Tensor,
    tokens: np.ndarray,
    ids: Tensor,
    text_vocab_size: int,
    equal: bool = True,
) -> Grouping:
    """Cluster the tokens that occur by their neighbours, and put all others, by id, where `equal` says.

    There are ceil(V / S) clusters. None gets more than twice its even part of the tokens that occur: the softmax
    inside groups has work to do in all of them.

    Args:
        config, counts, tokens, ids: see `build_grouping`.
        group_size: S.
        text_vocab_size: above every id of the text.
        equal: fill the clusters up with the others to sizes that differ by one at most, as a layer of S slots shared
            by all groups asks for. Otherwise the others have groups of their own: softmaxes inside clusters are short.
    """
    vocab_size, order = counts.numel(), order_by_frequency(counts)
    n_group = math.ceil(vocab_size / group_size)
    words = order[: min(MAX_WORDS, int((counts > 0).sum()))]
    others = order[words.numel() :].sort().values
    quota = np.full(n_group, vocab_size // n_group if equal else group_size)
    if equal:
        quota[: vocab_size % n_group] += 1
    room = np.minimum(quota, 2 * math.ceil(words.numel() / n_group))
    clusters = np.empty(0, dtype=np.int64)
    if words.numel():
        known = ids[words].numpy()
        if config.name == "brown":
            clusters = brown_clusters(tokens, known, text_vocab_size, room)
        else:
            clusters = kmeans_clusters(tokens, known, text_vocab_size, room, config.seed)
    if equal:
        rest = np.repeat(np.arange(n_group), quota - np.bincount(clusters, minlength=n_group))
    else:
        rest = n_group + np.arange(others.numel()) // group_size
    groups = torch.from_numpy(np.concatenate([clusters, rest]))
    return group_as_told(torch.cat([words, others]), torch.unique(groups, return_inverse=True)[1])


BY_COUNT = ("frequency", "sqrt_frequency", "kmeans", "brown")
"""Groupings that are made from the training occurrences of the tokens."""


def build_grouping(
    config: GroupingConfig,
    vocab_size: int,
    group_size: int | None = None,
    counts: Tensor | None = None,
    tokens: Callable[[], np.ndarray] | None = None,
    ids: Tensor | None = None,
    equal: bool = True,
) -> Grouping:
    """Build the grouping that `config` names.

    Args:
        config: `merge_rank` takes ids in their own order: GPT-2's ids are its 256 bytes, then its merges by rank,
            then end-of-text (arXiv 2411.06371, "Groups"); `frequency` takes the most frequent first, ties by id;
            `sqrt_frequency` see `group_by_sqrt_frequency`; `kmeans` and `brown` see `group_by_company`.
        vocab_size: V, the number of tokens to group.
        group_size: S in [1, V]; None means round(sqrt V).
        counts: (V,) occurrences in the training text, for all but `merge_rank` and `random`.
        tokens: gives the training text, (T,) ids, for `kmeans` and `brown`.
        ids: (V,) what the tokens to group are called in the text; None means 0 to V - 1.
        equal: whether clusters have equal sizes, see `group_by_company`.

    Raises:
        ConfigError: S outside [1, V], or no counts or text where they are needed.
    """
    size = check_group_size(group_size, vocab_size)
    order = torch.arange(vocab_size)
    if config.name == "random":
        order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(config.seed))
    if config.name not in BY_COUNT:
        return group_in_order(order, size)
    if counts is None:
        raise ConfigError(f"grouping={config.name} needs the token counts of the training text")
    if config.name == "frequency":
        return group_in_order(order_by_frequency(counts), size)
    if config.name == "sqrt_frequency":
        return group_by_sqrt_frequency(counts, size)
    if tokens is None and counts.any():
        raise ConfigError(f"grouping={config.name} needs the training text")
    text = tokens() if tokens is not None else np.empty(0, np.int64)
    ids = order if ids is None else ids
    return group_by_company(config, size, counts, text, ids, max(int(ids.max()), int(text.max(initial=0))) + 1, equal)
