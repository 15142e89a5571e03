"""Ranks of given tokens among all V, for accuracies. Most states need a small part of the log-probabilities.

Letters: N states, D width, V vocabulary, C candidates, K tokens outside the groups, G groups, S slots per group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from grouped_lm.heads.decoding.best_first import BestFirstHead

TILE = 128
"""Columns whose largest number is taken first: torch's `amax` takes a tenth of the time of its `topk`."""
NUMBERS = 2**23
"""Log-probabilities that exist at once while ranks are searched."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The places of N tokens, one per state, in the order of likelihood."""

    log_prob: Tensor  # (N,) log-probability of the token
    rank: Tensor  # (N,) tokens before it, likelier or as likely with a lower id; counted up to the number asked for
    best: Tensor  # (N,) log-probability of the likeliest token


def precedes(log_prob: Tensor, ids: Tensor, own: Tensor, tokens: Tensor) -> Tensor:
    """Return (N, C) whether a candidate comes before the token of its row: likelier, or as likely with a lower id.

    Args:
        log_prob: (N, C), -inf where there is no candidate.
        ids: (C,) or (N, C) ids of the candidates, -1 where there is none.
        own: (N,) log-probability of the token itself.
        tokens: (N,) its id.
    """
    own, tokens = own.unsqueeze(1), tokens.unsqueeze(1)
    return ((log_prob > own) & (ids != tokens)) | ((log_prob == own) & (ids < tokens) & (ids >= 0))


def in_parts(rank: Callable[[Tensor, Tensor], Ranks], hidden: Tensor, tokens: Tensor, vocab_size: int) -> Ranks:
    """Return `rank` of (N, D) states and (N,) ids, of so few rows at once that few V-wide numbers exist."""
    rows = max(1, NUMBERS // vocab_size)
    parts = [rank(*pair) for pair in zip(hidden.split(rows), tokens.split(rows), strict=True)]
    columns = zip(*((part.log_prob, part.rank, part.best) for part in parts), strict=True)
    return Ranks(*map(torch.cat, columns))


def rank_columns(log_prob: Tensor, tokens: Tensor, most: int) -> Ranks:
    """Return the ranks of (N,) ids in (N, V) log-probabilities, counted up to `most`."""
    own = log_prob.gather(1, tokens.unsqueeze(1)).squeeze(1)
    top = top_values(log_prob, min(most, log_prob.shape[1]))
    return rank_in_top(own, top, tokens, most, lambda rows: log_prob[rows])


def rank_in_top(own: Tensor, top: Tensor, tokens: Tensor, most: int, log_prob: Callable[[Tensor], Tensor]) -> Ranks:
    """Return the ranks of (N,) ids, counted up to `most`.

    Args:
        own: (N,) log-probabilities of the tokens.
        top: (N, min(most, V)) largest log-probabilities, falling.
        tokens: (N,) ids.
        most: the largest rank.
        log_prob: returns all (n, V) log-probabilities of some rows. It is called where others may equal the token.
    """
    before, equal = (top > own.unsqueeze(1)).sum(1), top == own.unsqueeze(1)
    rows = ((equal.sum(1) > 1) | equal[:, -1]).nonzero().squeeze(1)
    if rows.numel():
        whole = log_prob(rows)
        ids = torch.arange(whole.shape[1], device=whole.device)
        before[rows] = precedes(whole, ids, own[rows], tokens[rows]).sum(1)
    return Ranks(own, before.clamp_max(most).masked_fill(own.isnan(), most), top[:, 0])


def top_values(values: Tensor, k: int) -> Tensor:
    """Return the (N, k) largest of (N, C) numbers, falling. `values.topk(k)` is the slow line."""
    whole = values.shape[1] // TILE
    if whole < 4 * k:
        return values.topk(k, dim=1).values
    tiles, rest = values[:, : whole * TILE].unflatten(1, (whole, TILE)), values[:, whole * TILE :]
    places = tiles.amax(2).topk(k, dim=1).indices  # no other tile has one of the k largest numbers
    found = tiles.gather(1, places.unsqueeze(2).expand(-1, -1, TILE)).flatten(1)
    return torch.cat([found, rest], dim=1).topk(k, dim=1).values


def ranks_by_groups(head: BestFirstHead, states: Tensor, tokens: Tensor, most: int) -> Ranks:
    """Return the ranks of (N,) ids for (N, D) states, counted up to `most`, from as few groups as possible.

    A group is computed at once for all states that need it: those for which the group as a whole is likelier than the
    likeliest token found so far, or, while fewer than `most` tokens are counted, than the state's own token.
    """
    search = _Search(head, states, tokens, most)
    everything = slice(None)
    for group in search.groups[search.groups >= 0].unique().tolist():
        search.open(group, search.groups == group)
    search.count(everything, *search.single)
    for group in search.likeliest.unique().tolist():  # the likeliest token is often there
        search.open(group, search.needs(group) & (search.likeliest == group))
    search.done |= search.likeliest == search.numbers
    needed = search.needs(everything).any(1).nonzero().squeeze(1)
    by_mass = search.bounds[needed].exp().sum(1).argsort(descending=True)
    for group in needed[by_mass].tolist():
        search.open(group, search.needs(group))
    return Ranks(search.own, search.before.clamp_max(most).masked_fill(search.own.isnan(), most), search.best)


class _Search:
    """The state of `ranks_by_groups`."""

    def __init__(self, head: BestFirstHead, states: Tensor, tokens: Tensor, most: int) -> None:
        self.head, self.states, self.tokens, self.most = head, states, tokens, most
        first, shortlist = head.class_log_prob(states), head.shortlist_ids()
        self.single = first[:, : shortlist.numel()], shortlist
        self.bounds = first[:, shortlist.numel() :].T.contiguous()  # (G, N)
        self.members = head.group_members()
        self.groups, self.slots = head.groups_and_slots(tokens)
        self.numbers = torch.arange(len(self.bounds), device=tokens.device).unsqueeze(1)
        self.done = self.groups == self.numbers  # (G, N) whether a group is opened, or never needed
        self.likeliest = self.bounds.argmax(0)
        column = torch.where(self.groups < 0, self.slots, self.groups + shortlist.numel())
        self.own = first.gather(1, column.unsqueeze(1)).squeeze(1)  # of tokens in groups that of the group, until open
        self.before, self.best = torch.zeros_like(tokens), torch.full_like(self.own, -torch.inf)

    def needs(self, groups: int | slice) -> Tensor:
        """Return (N,) or (groups, N) whether a state needs a group."""
        bounds = self.bounds[groups]
        return ~self.done[groups] & ((bounds > self.best) | ((bounds >= self.own) & (self.before < self.most)))

    def open(self, group: int, states: Tensor) -> None:
        """Count the tokens of a group for the (N,) states that are marked; of its own tokens learn the probability."""
        members = self.members[group]
        for rows in states.nonzero().squeeze(1).split(max(1, NUMBERS // members.numel())):
            inside = self.head.group_log_prob(self.states[rows], group) + self.bounds[group, rows].unsqueeze(1)
            own = (self.groups[rows] == group).nonzero().squeeze(1)
            if own.numel():
                self.own[rows[own]] = inside[own, self.slots[rows[own]]]
            self.count(rows, inside, members[: inside.shape[1]])

    def count(self, rows: Tensor | slice, log_prob: Tensor, ids: Tensor) -> None:
        """Count the (n, C) tokens for n states, where that is needed."""
        if not ids.numel() or not log_prob.numel():
            return
        top, own, before = log_prob.amax(1), self.own[rows], self.before[rows]
        self.best[rows] = torch.maximum(self.best[rows], top)
        look = ((top >= own) & (before < self.most)).nonzero().squeeze(1)
        before[look] += precedes(log_prob[look], ids, own[look], self.tokens[rows][look]).sum(1)
        self.before[rows] = before
