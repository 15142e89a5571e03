"""Exact decoding of two-step heads from few groups: p(token) = p(group) p(token | group) <= p(group).

Groups are opened one after another, the likeliest first. Once the next group as a whole is less likely than every token
that a truncation still needs, no token in it or in a later group can matter. Greedy decoding by groups, which takes the
best token of the best group, is a different method and wrong.

Letters: N states, D width, V vocabulary, K tokens outside the groups, G groups, S slots per group.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.heads.decoding.ranks import Blocks, precedes
from grouped_lm.heads.decoding.truncation import KeptTokens, Truncation, draw, draw_one, merge_kept, tempered, truncate
from grouped_lm.heads.regularised import RegularisedHead

FIRST_GROUPS = 2
"""Groups opened in the first round; every later round doubles the number of open groups."""
OPEN_SHARE = 4
"""If more than 1/OPEN_SHARE of all groups were open, the V-wide line would cost no more."""
TRIES = 8
"""Rejected draws after which the V-wide line is used."""
MARGIN = 1e-9
"""Probability that must be known beyond `top_p`, since sums in another order differ in their last digits."""
FEW_STATES = 64
"""Largest number of states for which (N, S, D) rows are gathered for the probabilities of targets."""
ROUNDING = 1e-4
"""Share by which the probabilities of a group and of its tokens may disagree."""


class BestFirstHead(RegularisedHead):
    """A head of two steps: K tokens and G groups, then the S tokens of one group.

    A subclass defines the two distributions; truncation and draws on the joint distribution follow. The slow lines that
    they equal are `Head.truncate` and `Head.draw_tokens`, over `log_prob`.
    """

    @abstractmethod
    def shortlist_ids(self) -> Tensor:
        """Return the (K,) ids of the tokens outside the groups."""

    @abstractmethod
    def group_members(self) -> Tensor:
        """Return the (G, S) ids of the tokens of every group, -1 at padding slots."""

    @abstractmethod
    def groups_and_slots(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N,) groups and slots of (N,) ids; outside the groups -1 and the place in `shortlist_ids`."""

    @abstractmethod
    def class_log_prob(self, states: Tensor) -> Tensor:
        """Return the (N, K + G) log-probabilities of `shortlist_ids`, then of the groups, in fp32 or finer."""

    @abstractmethod
    def in_group_log_prob(self, states: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, S) log p(token | group) for one group in [0, G) per row, -inf at padding slots, as above."""

    def group_log_prob(self, states: Tensor, group: int) -> Tensor:
        """Return the (N, C) log p(token | group) of one group for all rows; slots after C have no token."""
        return self.in_group_log_prob(states, torch.full_like(states[:, 0], group, dtype=torch.int64))

    def blocks(self, hidden: Tensor) -> Blocks:
        """Return the groups for (N, D) states. Each has its own log-probability as a bound."""
        return GroupBlocks(self, hidden)

    def truncate(self, hidden: Tensor, truncation: Truncation) -> KeptTokens:
        """Return the tokens that `truncation` keeps for (N, D) states, likeliest first, equals by id."""
        self.check_states(hidden)
        if truncation.keeps_all or not len(hidden) or self.group_members().numel() == 0:
            return super().truncate(hidden, truncation)
        return merge_kept(list(self._search(hidden, truncation)))

    def _search(self, states: Tensor, truncation: Truncation) -> Iterator[tuple[Tensor, KeptTokens]]:
        """Yield (rows, their kept tokens) as soon as rows are settled, every row once."""
        shortlist, members = self.shortlist_ids(), self.group_members()
        n_group, rows = len(members), torch.arange(len(states), device=states.device)
        first = self.class_log_prob(states)
        log_prob, ids = first[:, : shortlist.numel()], shortlist.expand(len(states), -1)
        bounds, order = first[:, shortlist.numel() :].sort(dim=1, descending=True)
        opened, step = 0, 0 if shortlist.numel() else FIRST_GROUPS  # the shortlist may be enough
        while True:
            step = min(step, n_group - opened)
            if step:
                chosen = slice(opened, opened + step)
                new, new_ids = self._open(states, order[:, chosen], bounds[:, chosen])
                log_prob = torch.cat([log_prob, new], dim=1)
                ids = torch.cat([ids, new_ids.clamp_min(0)], dim=1)
                opened += step
            settled = is_settled(log_prob, bounds[:, opened], truncation) if opened < n_group else None
            if settled is None or bool(settled.all()):
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
        """Return (N, C S) log-probabilities of the tokens of (N, C) groups, and their ids, -1 at padding slots.

        `bounds` are the (N, C) log-probabilities of the groups.
        """
        inside = self.in_group_log_prob(states.repeat_interleave(groups.shape[1], 0), groups.flatten())
        joint = inside.view(*groups.shape, -1) + bounds.unsqueeze(-1)
        return joint.flatten(1), self.group_members()[groups].flatten(1)

    def draw_tokens(
        self, hidden: Tensor, generator: torch.Generator | None, temperature: float, truncation: Truncation, count: int
    ) -> Tensor:
        """Return `sample` of `count` draws for temperatures above 0: a group is drawn, then a token in it."""
        whole = truncation.keeps_all
        if not len(hidden) or self.group_members().numel() == 0 or not (whole or count == 1):
            return super().draw_tokens(hidden, generator, temperature, truncation, count)
        if not whole:
            return self._sample_kept(hidden, generator, temperature, truncation).unsqueeze(1)
        if temperature == 1 and count == 1:
            return self._sample_once(hidden, generator).unsqueeze(1)
        return self._sample_tempered(hidden, generator, temperature, count)

    def _sample_tempered(
        self, hidden: Tensor, generator: torch.Generator | None, temperature: float, num_samples: int
    ) -> Tensor:
        """Return (N, num_samples) ids drawn with weights p^(1/T), by rejection.

        The weight of a group is p(group)^(1/T) Z with Z = sum p(token | group)^(1/T). Z is known of open groups alone.
        So a group is drawn by the bound B >= Z, which is 1 for T <= 1 and S^(1 - 1/T) above, and accepted with
        probability Z / B. After `TRIES` rejections the V-wide line is used.
        """
        shortlist, members = self.shortlist_ids(), self.group_members()
        log_bound = max(0.0, 1 - 1 / temperature) * (members >= 0).sum(1).double().log()
        first = self.class_log_prob(hidden)
        first = (first - first.amax(1, keepdim=True)).double() / temperature
        first[:, shortlist.numel() :] += log_bound
        weights = (first - first.amax(1, keepdim=True)).exp()
        pending = torch.arange(len(hidden) * num_samples, device=hidden.device)  # draw d is of state d // num_samples
        tokens = torch.empty_like(pending)
        for _ in range(TRIES):
            choice = draw(weights, pending // num_samples, generator)
            if shortlist.numel():
                in_shortlist = choice < shortlist.numel()
                tokens[pending[in_shortlist]] = shortlist[choice[in_shortlist]]
                pending, choice = pending[~in_shortlist], choice[~in_shortlist]
            pairs = pending // num_samples * len(members) + choice - shortlist.numel()
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
        """Return (N,) ids: tokens are drawn from the whole distribution until one is kept by the truncation.

        Under top-p at temperature 1 a draw is kept with probability top_p or more. Most kept tokens are so likely that
        few groups can hold a likelier one. After `TRIES` rejections the V-wide line is used.
        """
        first = self.class_log_prob(states)
        pending = torch.arange(len(states), device=states.device)
        tokens = torch.zeros_like(pending)
        for _ in range(TRIES):
            drawn = self.draw_tokens(states[pending], generator, temperature, Truncation(), 1).squeeze(1)
            kept = self._keeps(states[pending], first[pending], drawn, truncation)
            tokens[pending[kept]] = drawn[kept]
            pending = pending[~kept]
            if not pending.numel():
                return tokens
        tokens[pending] = super().draw_tokens(states[pending], generator, temperature, truncation, 1).squeeze(1)
        return tokens

    def _keeps(self, states: Tensor, first: Tensor, tokens: Tensor, truncation: Truncation) -> Tensor:
        """Return (N,) whether `truncation` keeps each state's token, from as few groups as possible.

        Groups are opened best first. The number and probability of the known tokens that precede the given one are
        lower bounds. Upper bounds add the most that unopened groups can hold. `first` is `class_log_prob`.
        """
        shortlist, members = self.shortlist_ids(), self.group_members()
        keeps = torch.zeros_like(tokens, dtype=torch.bool)
        own = self._log_prob_of(states, first, tokens)
        before = PrecedingTokens(own, tokens)
        before.add(first[:, : shortlist.numel()], shortlist.expand(len(states), -1))
        bounds, order = first[:, shortlist.numel() :].sort(dim=1, descending=True)
        rows, opened, step = torch.arange(len(states), device=tokens.device), 0, FIRST_GROUPS
        while True:
            yes, no = before.decide(bounds[:, opened:], truncation)
            keeps[rows[yes]] = True
            going = ~(yes | no)
            if opened == len(members) or not bool(going.any()):
                return keeps
            rows, states, bounds, order = rows[going], states[going], bounds[going], order[going]
            before.keep(going)
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
        states, flat = self.flatten(hidden, targets)
        log_prob = self._log_prob_of(states, self.class_log_prob(states), flat.clamp_min(0))
        return log_prob.masked_fill(flat == IGNORE_INDEX, 0).view(targets.shape)

    def _log_prob_of(self, states: Tensor, first: Tensor, tokens: Tensor) -> Tensor:
        """Return (N,) log-probabilities of tokens, given the `class_log_prob` of their states.

        It uses the operators of `_open`, not those of the loss, so that equal probabilities have equal bits.
        """
        groups, slots = self.groups_and_slots(tokens)
        column = torch.where(groups < 0, slots, groups + self.shortlist_ids().numel())
        log_prob = first.gather(1, column.unsqueeze(1)).squeeze(1)
        rows = (groups >= 0).nonzero().squeeze(1)
        inside = self.in_group_log_prob(states[rows], groups[rows]).gather(1, slots[rows].unsqueeze(1)).squeeze(1)
        return log_prob.index_add(0, rows, inside)

    def _sample_once(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (N,) ids drawn at temperature 1: a group, then a token in it, with the fewest operators."""
        n_single, members = self.shortlist_ids().numel(), self.group_members()
        choice = draw_one(self.class_log_prob(hidden), generator)
        if not n_single:
            return members[choice, draw_one(self.in_group_log_prob(hidden, choice), generator)]
        tokens = self.shortlist_ids()[choice.clamp_max(n_single - 1)]
        rows = (choice >= n_single).nonzero().squeeze(1)
        if rows.numel():
            groups = choice[rows] - n_single
            tokens[rows] = members[groups, draw_one(self.in_group_log_prob(hidden[rows], groups), generator)]
        return tokens


class GroupBlocks(Blocks):
    """The groups of a head as blocks for (N, D) states."""

    def __init__(self, head: BestFirstHead, states: Tensor) -> None:
        self.head, self.states, self.single_ids = head, states, head.shortlist_ids()
        first, n_single = head.class_log_prob(states), self.single_ids.numel()
        self.single, self.bounds = first[:, :n_single], first[:, n_single:].T.contiguous()

    def members(self, block: int) -> Tensor:
        """Return the (S,) ids of a group, -1 at padding slots."""
        return self.head.group_members()[block]

    def places(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the groups and slots of (N,) ids."""
        return self.head.groups_and_slots(tokens)

    def log_prob(self, rows: Tensor, block: int) -> Tensor:
        """Return the (n, C) log-probabilities of the tokens of a group for (n,) states."""
        return self.head.group_log_prob(self.states[rows], block) + self.bounds[block, rows].unsqueeze(1)


class PrecedingTokens:
    """The known tokens that precede a given token: likelier ones, and equal ones with a lower id.

    Args:
        own: (N,) log-probability of the token itself.
        tokens: (N,) its id.
    """

    def __init__(self, own: Tensor, tokens: Tensor) -> None:
        self.own, self.tokens = own, tokens
        self.mass = torch.zeros_like(own, dtype=torch.float64)
        self.count = torch.zeros_like(tokens)
        self.best = own  # the largest log-probability known

    def keep(self, rows: Tensor) -> None:
        """Keep some rows alone."""
        for name, values in vars(self).items():
            setattr(self, name, values[rows])

    def add(self, log_prob: Tensor, ids: Tensor) -> None:
        """Add (N, C) log-probabilities, -inf where there is no token, and ids of further tokens."""
        if not ids.shape[1]:
            return
        comes = precedes(log_prob, ids, self.own, self.tokens)
        self.mass = self.mass + (log_prob.double().exp() * comes).sum(1)
        self.count = self.count + comes.sum(1)
        self.best = torch.maximum(self.best, log_prob.amax(1))

    def decide(self, bounds: Tensor, truncation: Truncation) -> tuple[Tensor, Tensor]:
        """Return (N,) whether the token is certainly kept, and whether it is certainly not.

        `bounds` are (N, U) falling log-probabilities of the groups that are not opened yet.
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
            capacity = (bounds - self.own.unsqueeze(1)).double().exp() * (1 + ROUNDING)
            most = self.count + capacity.floor().mul(may).sum(1)
            yes &= most < truncation.top_k
            no |= self.count >= truncation.top_k
        if truncation.min_p:
            highest = torch.maximum(self.best, bounds[:, 0]) if bounds.shape[1] else self.best
            yes &= self.own >= highest + truncation.log_min_p
            no |= self.own < self.best + truncation.log_min_p
        return yes & ~no, no


def is_settled(log_prob: Tensor, bound: Tensor, truncation: Truncation) -> Tensor:
    """Return (N,) whether no token of log-probability up to (N,) `bound` can change the kept tokens.

    The (N, C) `log_prob` are those of the tokens found so far, all those above `bound` among them.
    """
    above = log_prob > bound.unsqueeze(1)  # one that equals the bound may have an equal with a lower id
    settled = bound < log_prob.amax(1) + truncation.log_min_p
    if truncation.top_k is not None:
        settled |= above.sum(1) >= truncation.top_k
    if truncation.top_p < 1:
        settled |= (log_prob.double().exp() * above).sum(1) > truncation.top_p + MARGIN
    return settled
