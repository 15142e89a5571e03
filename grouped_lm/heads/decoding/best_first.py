"""Exact decoding of two-step heads from few groups: p(token) = p(group) p(token | group) <= p(group).

Groups are opened one after another, the likeliest first. Once the next group as a whole is less likely than every token
that a truncation still needs, no token in it or in a later group can matter. Greedy decoding by groups, which takes the
best token of the best group, is a different method and wrong.

Letters: N states, D width, V vocabulary, K tokens that stand alone in the first step, G groups, S slots per group.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.heads.base import Head, flatten
from grouped_lm.heads.decoding.truncation import KeptTokens, Truncation, draw, draw_one, merge_kept, tempered, truncate

FIRST_GROUPS = 2
"""Groups opened at once in the first round; every later round doubles what is open."""
OPEN_SHARE = 4
"""Where more than a 1/OPEN_SHARE of all groups would be open, the V-wide line costs no more."""
TRIES = 8
"""Rejected groups before a draw at some temperature other than 1 takes the V-wide line, too."""
MARGIN = 1e-9
"""Probability beyond `top_p` that is asked for, since sums in another order differ in their last digits."""
FEW_STATES = 64
"""States at most whose groups' rows are gathered for their targets' probabilities, as while writing: (N, S, D)."""
ROUNDING = 1e-4
"""Share by which the probabilities of a group and of its tokens may disagree."""


class BestFirstHead(Head):
    """A head of two steps: K tokens and G groups, then the S tokens of one group.

    A subclass gives the two distributions; cuts and draws on the joint one follow. The slow lines that they equal are
    `Head.truncate` and `Head.sample`, over `log_prob`.
    """

    @abstractmethod
    def shortlist_ids(self) -> Tensor:
        """Return (K,) ids of the tokens that stand in no group."""

    @abstractmethod
    def group_members(self) -> Tensor:
        """Return (G, S) ids of the tokens of every group, -1 at padding slots."""

    @abstractmethod
    def groups_and_slots(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N,) groups of (N,) ids and (N,) slots in them; -1 and the place in `alone` for those of no group."""

    @abstractmethod
    def class_log_prob(self, states: Tensor) -> Tensor:
        """Return (N, K + G) fp32 log-probabilities of the tokens in `alone`, then of the groups."""

    @abstractmethod
    def in_group_log_prob(self, states: Tensor, groups: Tensor) -> Tensor:
        """Return (N, S) fp32 log p(token | group) for one group per row, -inf at padding slots.

        Args:
            states: (N, D).
            groups: (N,) int64 in [0, G).
        """

    def truncate(self, hidden: Tensor, truncation: Truncation) -> KeptTokens:
        """See `Head.truncate`."""
        if truncation.keeps_all or not len(hidden) or self.group_members().numel() == 0:
            return super().truncate(hidden, truncation)
        return merge_kept(list(self._search(hidden, truncation)))

    def _search(self, states: Tensor, truncation: Truncation) -> Iterator[tuple[Tensor, KeptTokens]]:
        """Yield (rows, what is kept of them) as rows are settled, every row once."""
        alone, members = self.shortlist_ids(), self.group_members()
        n_group, rows = len(members), torch.arange(len(states), device=states.device)
        first = self.class_log_prob(states)
        log_prob, ids = first[:, : alone.numel()], alone.expand(len(states), -1)
        bounds, order = first[:, alone.numel() :].sort(dim=1, descending=True)
        opened, step = 0, 0 if alone.numel() else FIRST_GROUPS  # the tokens that stand alone may be enough
        while True:
            step = min(step, n_group - opened)
            if step:
                chosen = slice(opened, opened + step)
                new, new_ids = self._open(states, order[:, chosen], bounds[:, chosen])
                log_prob = torch.cat([log_prob, new], dim=1)
                ids = torch.cat([ids, new_ids.clamp_min(0)], dim=1)
                opened += step
            if opened == n_group:
                yield rows, truncate(log_prob, ids, truncation)
                return
            settled = is_settled(log_prob, bounds[:, opened], truncation)
            if bool(settled.all()):
                yield rows, truncate(log_prob, ids, truncation)
                return
            if bool(settled.any()):
                yield rows[settled], truncate(log_prob[settled], ids[settled], truncation)
                rows, states, log_prob, ids, bounds, order = (
                    values[~settled] for values in (rows, states, log_prob, ids, bounds, order)
                )
            step = max(FIRST_GROUPS, opened)
            if opened + step > max(2 * FIRST_GROUPS, n_group // OPEN_SHARE):
                yield rows, super().truncate(states, truncation)
                return

    def _open(self, states: Tensor, groups: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, C S) log-probabilities of the tokens of some groups, and their ids, -1 at padding slots.

        Args:
            states: (N, D).
            groups: (N, C) of each state.
            bounds: (N, C) their log-probabilities.
        """
        number = groups.shape[1]
        inside = self.in_group_log_prob(states.repeat_interleave(number, 0), groups.flatten()).view(
            len(states), number, -1
        )
        return (inside + bounds.unsqueeze(-1)).flatten(1), self.group_members()[groups].flatten(1)

    def sample(
        self,
        hidden: Tensor,
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
        truncation: Truncation | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """See `Head.sample`: without a truncation a group is drawn, then a token in it.

        The weight of a group at temperature T is p(group)^(1/T) Z, with Z = sum p(token | group)^(1/T), which is known
        only of open groups. So a group is drawn by the bound B >= Z, B = 1 for T <= 1 and S^(1 - 1/T) above, and
        taken with probability Z / B. The slow line takes over what was refused again and again.
        """
        if temperature == 0 or not len(hidden) or self.group_members().numel() == 0:
            return super().sample(
                hidden, generator, temperature=temperature, truncation=truncation, num_samples=num_samples
            )
        if truncation is not None and not truncation.keeps_all:
            if num_samples == 1:
                return self._sample_kept(hidden, generator, temperature, truncation).unsqueeze(1)
            return super().sample(
                hidden, generator, temperature=temperature, truncation=truncation, num_samples=num_samples
            )
        alone, members = self.shortlist_ids(), self.group_members()
        if temperature == 1 and num_samples == 1:
            return self._sample_once(hidden, generator).unsqueeze(1)
        log_bound = max(0.0, 1 - 1 / temperature) * (members >= 0).sum(1).double().log()
        first = self.class_log_prob(hidden)
        first = (first - first.amax(1, keepdim=True)).double() / temperature
        first[:, alone.numel() :] += log_bound
        weights = (first - first.amax(1, keepdim=True)).exp()
        pending = torch.arange(len(hidden) * num_samples, device=hidden.device)  # draw d is of state d // num_samples
        tokens = torch.empty_like(pending)
        for _ in range(TRIES):
            choice = draw(weights, pending // num_samples, generator)
            if alone.numel():
                is_alone = choice < alone.numel()
                tokens[pending[is_alone]] = alone[choice[is_alone]]
                pending, choice = pending[~is_alone], choice[~is_alone]
            pairs = pending // num_samples * len(members) + choice - alone.numel()
            open_pairs, which = pairs.unique(return_inverse=True)
            groups = open_pairs % len(members)
            inside = self.in_group_log_prob(hidden[open_pairs // len(members)], groups)
            tokens[pending] = members[groups[which], draw(tempered(inside, temperature), which, generator)]
            if temperature == 1:
                return tokens.view(-1, num_samples)
            chance = ((inside.double() / temperature).logsumexp(1) - log_bound[groups]).exp()[which]
            refused = torch.rand(chance.shape, dtype=chance.dtype, generator=generator, device=chance.device) >= chance
            pending = pending[refused]
            if not pending.numel():
                return tokens.view(-1, num_samples)
        rows, which = (pending // num_samples).unique(return_inverse=True)
        tokens[pending] = draw(tempered(self.log_prob(hidden[rows]), temperature), which, generator)
        return tokens.view(-1, num_samples)

    def _sample_kept(
        self, states: Tensor, generator: torch.Generator | None, temperature: float, truncation: Truncation
    ) -> Tensor:
        """Draw (N,) ids from what `truncation` leaves: draw from all until a token is one that the truncation keeps.

        What is refused is drawn again, so the accepted have the distribution of the kept ones. Under top-p at
        temperature 1 a draw is kept with that probability or more, and most kept tokens are so likely that few groups
        could hold a likelier one. The slow line takes over what was refused again and again.
        """
        first = self.class_log_prob(states)
        pending = torch.arange(len(states), device=states.device)
        tokens = torch.zeros_like(pending)
        for _ in range(TRIES):
            drawn = self.sample(states[pending], generator, temperature=temperature).squeeze(1)
            kept = self._keeps(states[pending], first[pending], drawn, truncation)
            tokens[pending[kept]] = drawn[kept]
            pending = pending[~kept]
            if not pending.numel():
                return tokens
        tokens[pending] = (
            super().sample(states[pending], generator, temperature=temperature, truncation=truncation).squeeze(1)
        )
        return tokens

    def _keeps(self, states: Tensor, first: Tensor, tokens: Tensor, truncation: Truncation) -> Tensor:
        """Return (N,) whether `truncation` keeps each state's token, from as few groups as decide it.

        Groups are opened best first. What is known of the tokens that come before the given one, their number and
        probability, is a lower bound; an upper one adds what unopened groups can hold at most.

        Args:
            states: (N, D).
            first: (N, K + G), their `class_log_prob`.
            tokens: (N,) ids.
            truncation: one that does not keep all.
        """
        alone, members = self.shortlist_ids(), self.group_members()
        keeps = torch.zeros_like(tokens, dtype=torch.bool)
        own = self._log_prob_of(states, first, tokens)
        before = Before(own, tokens)
        before.add(first[:, : alone.numel()], alone.expand(len(states), -1))
        bounds, order = first[:, alone.numel() :].sort(dim=1, descending=True)
        rows, opened, step = torch.arange(len(states), device=tokens.device), 0, FIRST_GROUPS
        while True:
            yes, no = before.decide(bounds[:, opened:], truncation)
            keeps[rows[yes]] = True
            going = ~(yes | no)
            if opened == len(members) or not bool(going.any()):
                return keeps
            rows, states, bounds, order = rows[going], states[going], bounds[going], order[going]
            before = before.of(going)
            step = min(step, len(members) - opened)
            chosen = slice(opened, opened + step)
            before.add(*self._open(states, order[:, chosen], bounds[:, chosen]))
            opened += step
            step = opened

    def target_log_prob(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return (...) log p(target), zero where ignored.

        Without gradients and for few states it uses `class_log_prob`, which is faster while weights are `frozen`.
        """
        if torch.is_grad_enabled() or not 0 < targets.numel() <= FEW_STATES:
            return super().target_log_prob(hidden, targets)
        states, flat = flatten(hidden, targets)
        found = self._log_prob_of(states, self.class_log_prob(states), flat.clamp_min(0))
        return found.masked_fill(flat == IGNORE_INDEX, 0).view(targets.shape)

    def _log_prob_of(self, states: Tensor, first: Tensor, tokens: Tensor) -> Tensor:
        """Return (N,) log-probabilities of tokens, given the `class_log_prob` of their states.

        By the operators of `_open`, not those of the loss, so that equal ones come out equal.
        """
        groups, slots = self.groups_and_slots(tokens)
        column = torch.where(groups < 0, slots, groups + self.shortlist_ids().numel())
        found = first.gather(1, column.unsqueeze(1)).squeeze(1)
        rows = (groups >= 0).nonzero().squeeze(1)
        inside = self.in_group_log_prob(states[rows], groups[rows]).gather(1, slots[rows].unsqueeze(1)).squeeze(1)
        return found.index_add(0, rows, inside)

    def _sample_once(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw (N,) ids at temperature 1: a group, then a token in it, in the fewest operators."""
        n_alone, members = self.shortlist_ids().numel(), self.group_members()
        choice = draw_one(self.class_log_prob(hidden), generator)
        if not n_alone:
            return members[choice, draw_one(self.in_group_log_prob(hidden, choice), generator)]
        tokens = self.shortlist_ids()[choice.clamp_max(n_alone - 1)]
        rows = (choice >= n_alone).nonzero().squeeze(1)
        if rows.numel():
            groups = choice[rows] - n_alone
            tokens[rows] = members[groups, draw_one(self.in_group_log_prob(hidden[rows], groups), generator)]
        return tokens


class Before:
    """What is known of the tokens that come before one, likelier or equal with a lower id.

    Args:
        own: (N,) log-probability of the token itself.
        tokens: (N,) its id.
    """

    def __init__(self, own: Tensor, tokens: Tensor) -> None:
        self.own, self.tokens = own, tokens
        self.mass = torch.zeros_like(own, dtype=torch.float64)
        self.count = torch.zeros_like(tokens)
        self.best = own
        """(N,) largest log-probability found."""

    def of(self, rows: Tensor) -> "Before":
        """Return what is known for some of the rows."""
        part = Before(self.own[rows], self.tokens[rows])
        part.mass, part.count, part.best = self.mass[rows], self.count[rows], self.best[rows]
        return part

    def add(self, log_prob: Tensor, ids: Tensor) -> None:
        """Count further tokens: (N, C) log-probabilities, -inf where there is none, and ids."""
        if not ids.shape[1]:
            return
        own, token = self.own.unsqueeze(1), self.tokens.unsqueeze(1)
        comes = ((log_prob > own) & (ids != token)) | ((log_prob == own) & (ids < token) & (ids >= 0))
        self.mass = self.mass + (log_prob.double().exp() * comes).sum(1)
        self.count = self.count + comes.sum(1)
        self.best = torch.maximum(self.best, log_prob.amax(1))

    def decide(self, bounds: Tensor, truncation: Truncation) -> tuple[Tensor, Tensor]:
        """Return (N,) whether the token is certainly kept, and whether it is certainly not.

        Args:
            bounds: (N, U) log-probabilities of the groups not opened yet, falling.
            truncation: one that does not keep all.
        """
        may = bounds >= self.own.unsqueeze(1)  # no other group has a token that comes before
        more = (bounds.double().exp() * may).sum(1)
        done = ~may.any(1)
        yes, no = torch.ones_like(done), torch.zeros_like(done)
        if truncation.top_p < 1:
            first = (self.count == 0) & done  # the likeliest is kept, however small top_p is
            yes &= (self.mass + more < truncation.top_p - MARGIN) | (done & (self.mass < truncation.top_p)) | first
            no |= (self.mass >= truncation.top_p) & (self.count > 0)
        if truncation.top_k is not None:
            room = (bounds - self.own.unsqueeze(1)).double().exp() * (1 + ROUNDING)
            most = self.count + room.floor().mul(may).sum(1)
            yes &= most < truncation.top_k
            no |= self.count >= truncation.top_k
        if truncation.min_p:
            highest = torch.maximum(self.best, bounds[:, 0]) if bounds.shape[1] else self.best
            yes &= self.own >= highest + truncation.log_min_p
            no |= self.own < self.best + truncation.log_min_p
        return yes & ~no, no


def is_settled(log_prob: Tensor, bound: Tensor, truncation: Truncation) -> Tensor:
    """Return (N,) whether no token of probability up to `bound` can change what `truncation` keeps.

    Args:
        log_prob: (N, C) of the tokens found so far, all those above `bound` among them.
        bound: (N,) log-probability of the next group.
        truncation: one that does not keep all.
    """
    above = log_prob > bound.unsqueeze(1)  # one that equals the bound may have an equal with a lower id
    settled = bound < log_prob.amax(1) + truncation.log_min_p
    if truncation.top_k is not None:
        settled |= above.sum(1) >= truncation.top_k
    if truncation.top_p < 1:
        settled |= (log_prob.double().exp() * above).sum(1) > truncation.top_p + MARGIN
    return settled
