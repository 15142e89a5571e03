"""The places of tokens in a head with a shortlist of frequent tokens next to groups of all others.

The probability of tokens that never occur in the training text is Good and Turing's estimate (Good 1953, Biometrika
40, 237).
Letters: V vocabulary, K shortlist, G groups, H of them reserved, S slots per group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grouped_lm.grouping import check_group_size
from grouped_lm.heads.context import HeadContext
from grouped_lm.heads.grouped_tokens import GroupedTokens


@dataclass(frozen=True, slots=True)
class Placement:
    """The group and the slot of each token."""

    token_to_group: Tensor
    """(V,) int64, -1 in the shortlist."""
    token_to_slot: Tensor
    """(V,) int64, the place in the group or in the shortlist."""
    n_group: int
    """G."""
    group_size: int
    """S."""
    shortlist_size: int
    """K."""
    reserved: Tensor
    """(H,) log-probabilities of the last groups."""
    n_shared: int | None = None
    """Tokens with shared rows in a checkpoint; None where there is no checkpoint."""


def place_tokens(shortlist_size: int, group_size: int | None, reserve: bool, context: HeadContext) -> Placement:
    """Return the K most frequent tokens as the shortlist, and all others in groups.

    If no counts are known, the shortlist is the first K ids.

    Args:
        shortlist_size: K.
        group_size: S; None means round(sqrt V).
        reserve: put groups of tokens that never occur in the training text last, with fixed probabilities.
        context: of the head.
    """
    reserved = torch.empty(0)
    if (saved := GroupedTokens.saved_groups(context.saved)) is not None:
        groups, slots = saved
        largest = slots[groups >= 0].max() if (groups >= 0).any() else -1
        reserved = context.saved.get("reserved", reserved)
        sizes = int(groups.max()) + 1, int(largest) + 1, int((groups < 0).sum())
        return Placement(groups, slots, *sizes, reserved, len(context.saved.get("sharing", ())))
    order, size = context.by_frequency(), check_group_size(group_size, context.vocab_size)
    first, rest = order[:shortlist_size], order[shortlist_size:].sort().values
    token_to_group, token_to_slot = torch.full_like(order, -1), torch.zeros_like(order)
    token_to_slot[first] = torch.arange(first.numel())
    if not rest.numel():
        return Placement(token_to_group, token_to_slot, 0, 0, first.numel(), reserved)
    grouping = context.groups(min(size, rest.numel()), rest, equal_sizes=False)
    groups = grouping.token_to_group
    if reserve and context.counts is not None:
        groups, reserved = reserve_groups(groups, grouping.n_group, context.counts[rest], context.counts)
    token_to_group[rest], token_to_slot[rest] = groups, grouping.token_to_slot
    return Placement(token_to_group, token_to_slot, grouping.n_group, grouping.group_size, first.numel(), reserved)


def reserve_groups(groups: Tensor, n_group: int, inside: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Put the groups whose tokens never occur last; return the new groups and the (H,) log-probabilities of those.

    Together they get the share of the text that tokens seen once have, in proportion to their sizes. That is the
    expected probability of a new word in the same kind of text. It is at least half a token of the text, at most half
    of the text.

    Args:
        groups: (n,) int64 in [0, G) of the tokens in groups.
        n_group: G.
        inside: (n,) occurrences of those tokens.
        counts: (V,) occurrences of all.
    """
    seen = torch.zeros(n_group, dtype=counts.dtype).index_add_(0, groups, inside) > 0
    total = int(counts.sum())
    if bool(seen.all()) or not total:
        return groups, torch.empty(0)
    order = torch.argsort(~seen, stable=True)  # of the old groups in the new order
    groups = torch.argsort(order)[groups]
    sizes = torch.bincount(groups, minlength=n_group)[int(seen.sum()) :].double()
    once = min(max(0.5, float((counts == 1).sum())), total / 2)
    return groups, (sizes / sizes.sum() * (once / total)).log().float()
