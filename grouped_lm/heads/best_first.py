"""Exact decoding of two-step heads from few groups: p(token) = p(group) p(token | group) <= p(group).

Groups are opened from the likeliest on. Once the next one as a whole is less likely than what a cut still needs, no
token in it, or in any later one, can matter. Greedy decoding by groups first, which takes the best token of the best
group, is something else, and wrong.

Letters: N states, D width, V vocabulary, K tokens that stand alone in the first step, G groups, S slots per group.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from grouped_lm.heads.base import Head
from grouped_lm.heads.cuts import Cut, Kept, draw, keep

FIRST_GROUPS = 2
"""Groups opened at once in the first round; every later round doubles what is open."""
OPEN_SHARE = 4
"""Where more than a 1/OPEN_SHARE of all groups would be open, the V-wide line costs no more."""
TRIES = 8
"""Rejected groups before a draw at some temperature other than 1 takes the V-wide line, too."""
MARGIN = 1e-9
"""Probability beyond `top_p` that is asked for, since sums in another order differ in their last digits."""


class BestFirstHead(Head):
    """A head of two steps: K tokens and G groups, then the S tokens of one group.

    A subclass gives the two distributions; cuts and draws on the joint one follow. The slow lines that they equal are
    `Head.keep` and `Head.sample`, over `log_prob`.
    """

    @abstractmethod
    def alone(self) -> Tensor:
        """Return (K,) ids of the tokens that stand in no group."""

    @abstractmethod
    def group_members(self) -> Tensor:
        """Return (G, S) ids of the tokens of every group, -1 at phantom slots."""

    @abstractmethod
    def first_step(self, states: Tensor) -> Tensor:
        """Return (N, K + G) fp32 log-probabilities of the tokens in `alone`, then of the groups."""

    @abstractmethod
    def inside(self, states: Tensor, groups: Tensor) -> Tensor:
        """Return (N, S) fp32 log p(token | group) for one group per row, -inf at phantom slots.

        Args:
            states: (N, D).
            groups: (N,) int64 in [0, G).
        """

    def keep(self, hidden: Tensor, cut: Cut) -> Kept:
        """See `Head.keep`."""
        if cut.keeps_all or self.group_members().numel() == 0:
            return super().keep(hidden, cut)
        pieces = list(self._search(hidden, cut))
        if len(pieces) == 1:
            return pieces[0][1]
        width = max(kept.ids.shape[1] for _, kept in pieces)
        log_prob = pieces[0][1].log_prob.new_full((len(hidden), width), -torch.inf)
        ids = torch.zeros_like(log_prob, dtype=torch.int64)
        for rows, kept in pieces:
            log_prob[rows, : kept.ids.shape[1]] = kept.log_prob
            ids[rows, : kept.ids.shape[1]] = kept.ids
        return Kept(log_prob, ids)

    def _search(self, states: Tensor, cut: Cut) -> Iterator[tuple[Tensor, Kept]]:
        """Yield (rows, what is kept of them) as rows are settled, every row once."""
        alone, members = self.alone(), self.group_members()
        n_group, rows = len(members), torch.arange(len(states), device=states.device)
        first = self.first_step(states)
        log_prob, ids = first[:, : alone.numel()], alone.expand(len(states), -1)
        bounds, order = first[:, alone.numel() :].sort(dim=1, descending=True)
        opened, step = 0, FIRST_GROUPS
        while True:
            step = min(step, n_group - opened)
            groups, chosen = order[:, opened : opened + step], slice(opened, opened + step)
            new = self.inside(states.repeat_interleave(step, 0), groups.flatten()).view(len(states), step, -1)
            log_prob = torch.cat([log_prob, (new + bounds[:, chosen].unsqueeze(-1)).flatten(1)], dim=1)
            ids = torch.cat([ids, members[groups].flatten(1).clamp_min(0)], dim=1)
            opened += step
            if opened == n_group:
                yield rows, keep(log_prob, ids, cut)
                return
            settled = is_settled(log_prob, bounds[:, opened], cut)
            if bool(settled.all()):
                yield rows, keep(log_prob, ids, cut)
                return
            if bool(settled.any()):
                yield rows[settled], keep(log_prob[settled], ids[settled], cut)
                rows, states, log_prob, ids, bounds, order = (
                    values[~settled] for values in (rows, states, log_prob, ids, bounds, order)
                )
            step = opened
            if opened + step > max(2 * FIRST_GROUPS, n_group // OPEN_SHARE):
                yield rows, super().keep(states, cut)
                return

    def sample(
        self,
        hidden: Tensor,
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
        cut: Cut | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """See `Head.sample`: without a cut a group is drawn, then a token in it.

        The weight of a group at temperature T is p(group)^(1/T) Z, with Z = sum p(token | group)^(1/T), which is known
        only of open groups. So a group is drawn by the bound B >= Z, B = 1 for T <= 1 and S^(1 - 1/T) above, and
        taken with probability Z / B. The slow line takes over what was refused again and again.
        """
        if temperature == 0 or (cut is not None and not cut.keeps_all) or self.group_members().numel() == 0:
            return super().sample(hidden, generator, temperature=temperature, cut=cut, num_samples=num_samples)
        alone, members = self.alone(), self.group_members()
        log_bound = max(0.0, 1 - 1 / temperature) * (members >= 0).sum(1).double().log()
        first = self.first_step(hidden).double() / temperature
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
            inside = self.inside(hidden[open_pairs // len(members)], groups).double() / temperature
            tokens[pending] = members[groups[which], draw(inside.softmax(1), which, generator)]
            if temperature == 1:
                return tokens.view(-1, num_samples)
            chance = (inside.logsumexp(1) - log_bound[groups]).exp()[which]
            refused = torch.rand(chance.shape, dtype=chance.dtype, generator=generator, device=chance.device) >= chance
            pending = pending[refused]
            if not pending.numel():
                return tokens.view(-1, num_samples)
        rows, which = (pending // num_samples).unique(return_inverse=True)
        tokens[pending] = draw((self.log_prob(hidden[rows]).double() / temperature).softmax(1), which, generator)
        return tokens.view(-1, num_samples)


def is_settled(log_prob: Tensor, bound: Tensor, cut: Cut) -> Tensor:
    """Return (N,) whether no token of probability up to `bound` can change what `cut` keeps.

    Args:
        log_prob: (N, C) of the tokens found so far, all those above `bound` among them.
        bound: (N,) log-probability of the next group.
        cut: one that does not keep all.
    """
    above = log_prob > bound.unsqueeze(1)  # one that equals the bound may have an equal with a lower id
    settled = bound < log_prob.amax(1) + cut.log_min_p
    if cut.top_k is not None:
        settled |= above.sum(1) >= cut.top_k
    if cut.top_p < 1:
        settled |= (log_prob.double().exp() * above).sum(1) > cut.top_p + MARGIN
    return settled
