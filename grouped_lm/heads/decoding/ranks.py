"""Ranks of given tokens among all V, for accuracies. Most states need a small part of the log-probabilities.

Letters: N states, D width, V vocabulary, C candidates, K tokens outside the blocks, G blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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


def ranks_by_all(log_prob: Callable[[Tensor], Tensor], states: Tensor, tokens: Tensor, most: int) -> Ranks:
    """Return the ranks of (N,) ids, counted up to `most`, from all (n, V) log-probabilities of some states at once."""
    own, rank, best = [], [], []
    rows = max(1, NUMBERS // len(log_prob(states[:1])[0])) if len(states) else 1
    for part, ids in zip(states.split(rows), tokens.split(rows), strict=True):
        values = log_prob(part)
        own.append(values.gather(1, ids.unsqueeze(1)).squeeze(1))
        everything = torch.arange(values.shape[1], device=ids.device)
        rank.append(precedes(values, everything, own[-1], ids).sum(1))
        best.append(values.amax(1))
    return _ranks(torch.cat(own), torch.cat(rank), torch.cat(best), most)


def _ranks(own: Tensor, before: Tensor, best: Tensor, most: int) -> Ranks:
    """Return the ranks where (N,) tokens have `before` others before them; those of diverged models are the last."""
    return Ranks(own, before.clamp_max(most).masked_fill(own.isnan(), most), best)


class Blocks(ABC):
    """The V tokens for N states: K single ones, and G blocks that can be computed one by one."""

    single: Tensor
    """(N, K) log-probabilities of the single tokens."""
    single_ids: Tensor
    """(K,) their ids."""
    bounds: Tensor
    """(G, N) log-probabilities that no token of a block exceeds."""

    @abstractmethod
    def members(self, block: int) -> Tensor:
        """Return the (C,) ids of a block, -1 at padding slots."""

    @abstractmethod
    def places(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N,) blocks and slots of (N,) ids; outside the blocks -1 and the place in `single_ids`."""

    @abstractmethod
    def log_prob(self, rows: Tensor, block: int) -> Tensor:
        """Return the (n, C) log-probabilities of the tokens of a block for (n,) states; later slots have no token."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A constant that is added to the probabilities of some tokens, and how a head computes the result."""

    mixed: Callable[[Tensor, Tensor], Tensor]
    """Returns log-probabilities of the mixture from those of the head, for tokens that are unseen or not."""
    unseen: Tensor
    """(V,) bool, true for these tokens."""
    log_added: Tensor
    """() log of the constant, as a probability of the head itself."""

    def limits(self, log_prob: Tensor, unseen: Tensor) -> list[Tensor]:
        """Return the (N,) log-probabilities of the head at which other tokens are as likely as tokens with `log_prob`.

        The first are those of seen tokens, the second those of unseen ones.
        """
        added = self.log_added.to(log_prob.dtype)
        above = torch.logaddexp(log_prob, added)
        below = log_prob + torch.log1p(-(added - log_prob).exp().clamp_max(1))
        return [torch.where(unseen, above, log_prob), torch.where(unseen, log_prob, below)]


def ranks_by_blocks(blocks: Blocks, tokens: Tensor, most: int, mixture: Mixture | None = None) -> Ranks:
    """Return the ranks of (N,) ids, counted up to `most`, from as few blocks as possible.

    A block is computed at once for all states that need it: those for which its bound is above the likeliest token
    found so far, or, while fewer than `most` tokens are counted, above the state's own token.
    """
    search = _Search(blocks, tokens, most, mixture)
    everything = torch.arange(len(tokens), device=tokens.device)
    for block in search.own_block[search.own_block >= 0].unique().tolist():
        search.open(block, search.own_block == block)
    search.count(everything, blocks.single, blocks.single_ids)
    for block in search.likeliest[search.likeliest >= 0].unique().tolist():  # the likeliest token is often there
        search.open(block, search.needs(block) & (search.likeliest == block))
    search.done |= search.likeliest == search.numbers
    needed = search.needs(slice(None)).any(1).nonzero().squeeze(1)
    by_mass = search.bounds[needed].exp().sum(1).argsort(descending=True)
    for block in needed[by_mass].tolist():
        search.open(block, search.needs(block))
    return _ranks(search.own, search.before, search.best, most)


class _Search:
    """The state of `ranks_by_blocks`. Tokens are compared before they are mixed, which is cheaper and keeps ties."""

    def __init__(self, blocks: Blocks, tokens: Tensor, most: int, mixture: Mixture | None) -> None:
        self.blocks, self.tokens, self.most, self.mixture = blocks, tokens, most, mixture
        self.own_block, self.slots = blocks.places(tokens)
        self.bounds = self.mixed(blocks.bounds, True)
        self.numbers = torch.arange(len(self.bounds), device=tokens.device).unsqueeze(1)
        self.done = self.own_block == self.numbers  # (G, N) whether a block is opened, or never needed
        self.likeliest = self.bounds.argmax(0) if len(self.bounds) else torch.full_like(tokens, -1)
        self.own = torch.full_like(tokens, torch.nan, dtype=self.bounds.dtype)
        self.limits = [self.own.clone(), self.own.clone()]  # what tokens of each kind need to come first
        self.before, self.best = torch.zeros_like(tokens), torch.full_like(self.own, -torch.inf)
        rows = (self.own_block < 0).nonzero().squeeze(1)
        self.learn(rows, blocks.single[rows, self.slots[rows]])

    def mixed(self, log_prob: Tensor, unseen: bool) -> Tensor:
        """Return the log-probabilities of the mixture, if there is one."""
        if self.mixture is None:
            return log_prob
        return self.mixture.mixed(log_prob, torch.tensor(unseen, device=log_prob.device))

    def learn(self, rows: Tensor, log_prob: Tensor) -> None:
        """Set the (n,) log-probabilities of the own tokens of (n,) states."""
        if self.mixture is None:
            self.own[rows] = self.limits[0][rows] = log_prob
            return
        unseen = self.mixture.unseen[self.tokens[rows]]
        self.own[rows] = self.mixture.mixed(log_prob, unseen)
        for limits, some in zip(self.limits, self.mixture.limits(log_prob, unseen), strict=True):
            limits[rows] = some

    def needs(self, blocks: int | slice) -> Tensor:
        """Return (N,) or (blocks, N) whether a state needs a block."""
        bounds = self.bounds[blocks]
        return ~self.done[blocks] & ((bounds > self.best) | ((bounds >= self.own) & (self.before < self.most)))

    def open(self, block: int, states: Tensor) -> None:
        """Count the tokens of a block for the (N,) states that are marked; of its own tokens learn the probability."""
        members = self.blocks.members(block)
        for rows in states.nonzero().squeeze(1).split(max(1, NUMBERS // members.numel())):
            inside = self.blocks.log_prob(rows, block)
            own = (self.own_block[rows] == block).nonzero().squeeze(1)
            if own.numel():
                self.learn(rows[own], inside[own, self.slots[rows[own]]])
            self.count(rows, inside, members[: inside.shape[1]])

    def count(self, rows: Tensor, log_prob: Tensor, ids: Tensor) -> None:
        """Count the (n, C) tokens for n states, seen and unseen ones apart."""
        unseen = torch.zeros_like(ids, dtype=torch.bool)
        if self.mixture is not None:
            unseen = self.mixture.unseen[ids] & (ids >= 0)
        for kind in (False, True):
            columns = (unseen == kind).nonzero().squeeze(1)
            if columns.numel() == ids.numel():
                self.count_kind(rows, log_prob, ids, kind)
            elif columns.numel():
                self.count_kind(rows, log_prob[:, columns], ids[columns], kind)

    def count_kind(self, rows: Tensor, log_prob: Tensor, ids: Tensor, unseen: bool) -> None:
        """Count (n, C) tokens of one kind for n states, where that is needed."""
        if not log_prob.numel():
            return
        top, limit, before = log_prob.amax(1), self.limits[unseen][rows], self.before[rows]
        self.best[rows] = torch.maximum(self.best[rows], self.mixed(top, unseen))
        look = ((top >= limit) & (before < self.most)).nonzero().squeeze(1)
        before[look] += precedes(log_prob[look], ids, limit[look], self.tokens[rows][look]).sum(1)
        self.before[rows] = before
