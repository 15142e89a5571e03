"""A share of probability for tokens that the training text does not have, for every head.

Training lowers the probability of such a token towards 0, so that one of them in another text costs 20 nats or more.
Letters: N tokens, D width, V vocabulary, H tokens without an occurrence.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.grouping import Text
from grouped_lm.heads.base import Head
from grouped_lm.heads.decoding.ranks import Mixture, Ranks, ranks_by_all, ranks_by_blocks
from grouped_lm.heads.decoding.truncation import KeptTokens, Truncation
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32, reduce_nll, static_sizes, which_count
from grouped_lm.heads.unseen import resolve_share


class ReserveMixin(Head):
    """p(token) = (1 - r) p_head(token), plus r / H for each of the H tokens that the training text does not have.

    `with_reserve` puts it before the class of a head, which `super()` then is. It is exact and normalised for any head.
    Its gradients differ from those of the head alone only where a target is one of the H tokens.
    """

    unseen: Tensor  # (V,) bool, true for the H tokens
    reserve_share: Tensor  # () fp32, r; 0 where no counts are known or no token is unseen

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the class of the head alone: that with the reserve is made at run time."""
        return _empty_head, (type(self).__mro__[2],), self.__getstate__()

    def set_reserve(self, reserve: bool | float, counts: Tensor | None, text: Text | None) -> None:
        """Register the buffers; without counts no token is unseen, until a checkpoint is loaded."""
        unseen = torch.zeros(self.vocab_size, dtype=torch.bool) if counts is None else counts == 0
        known = counts is not None and bool(unseen.any()) and not bool(unseen.all())
        share = resolve_share(reserve, counts, text) if counts is not None and known else 0.0
        self.register_buffer("unseen", unseen & known)
        self.register_buffer("reserve_share", torch.tensor(share))

    def mixed(self, log_prob: Tensor, unseen: Tensor) -> Tensor:
        """Return log-probabilities of the mixture from those of the head, for tokens that are unseen or not."""
        share = at_least_fp32(self.reserve_share).to(log_prob.dtype)
        kept = log_prob + torch.log1p(-share)
        reserved = (share / self.unseen.sum()).log()  # -inf or NaN where no token is unseen, and then not taken
        return torch.where(unseen, torch.logaddexp(kept, torch.where(unseen, reserved, kept.detach())), kept)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets; the part of a group has what the mixture changes."""
        if reduction == "none" or torch.compiler.is_compiling() or static_sizes():
            loss = super().loss(hidden, targets, "none", accuracy)  # type: ignore[safe-super]
            counted = which_count(targets)
            nll = -self.mixed(-at_least_fp32(loss.nll), self.unseen[targets.long().clamp_min(0)])
            change = (nll - loss.nll).masked_fill(~counted, 0)
            if reduction != "none":
                loss = _summed(loss)
        else:
            loss = super().loss(hidden, targets, "sum", accuracy)  # type: ignore[safe-super]
            change = self._change_of_sum(hidden, targets)
        return self._changed(loss, change, targets, reduction)

    def _change_of_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the () nats that the mixture adds to the summed loss; unseen targets are few, and computed again."""
        states, flat = self.flatten(hidden, targets)
        counted = flat != IGNORE_INDEX
        change = -torch.log1p(-at_least_fp32(self.reserve_share)) * counted.sum()
        if is_fake(states):  # a plan has no targets, and rare ones need next to nothing
            return change
        rare = (self.unseen[flat.clamp_min(0)] & counted).nonzero().squeeze(1)
        if not rare.numel():
            return change
        loss = super().loss(states[rare], flat[rare], "none")  # type: ignore[safe-super]
        own = at_least_fp32(loss.nll)
        without = own - torch.log1p(-self.reserve_share.to(own.dtype))
        return change - (self.mixed(-own, self.unseen[flat[rare]]) + without).sum()

    def _changed(self, loss: HeadLoss, change: Tensor, targets: Tensor, reduction: str) -> HeadLoss:
        """Return a loss of the head, per token or summed, with the change and under the reduction."""

        def reduced(values: Tensor | None) -> Tensor | None:
            return None if values is None else reduce_nll(values, targets, reduction)

        per_token = reduction == "none"
        total = loss.nll + (change if per_token else change.sum())
        group = None
        if loss.group_nll is not None:
            group = loss.group_nll + (change if per_token else change.detach().sum())
        nll, hits = reduced(total), (loss.group_correct, loss.token_correct)
        assert nll is not None
        return HeadLoss(nll, reduced(group), reduced(loss.token_nll), *hits, reduced(loss.extra))

    def target_log_prob(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return (...) log p(target), zero where ignored."""
        return -self.loss(hidden, targets, reduction="none").nll

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token."""
        return self.mixed(super().log_prob(hidden), self.unseen)  # type: ignore[safe-super]

    # These searches of heads with groups know their own distribution alone, so that they take the V-wide lines.

    def truncate(self, hidden: Tensor, truncation: Truncation) -> KeptTokens:
        """Return the tokens that `truncation` keeps for (N, D) states, likeliest first, equals by id."""
        return Head.truncate(self, hidden, truncation)

    def ranks(self, hidden: Tensor, tokens: Tensor, most: int) -> Ranks:
        """Return the ranks of (N,) ids for (N, D) states, counted up to `most`."""
        with torch.no_grad():
            blocks = self.blocks(hidden)
            if blocks is None:
                return ranks_by_all(self.log_prob, hidden, tokens, most)
            share = self.reserve_share.double()
            added = (share / (1 - share) / self.unseen.sum()).log()
            mixture = Mixture(self.mixed, self.unseen, added) if bool(share) else None
            return ranks_by_blocks(blocks, tokens, most, mixture)

    def draw_tokens(
        self, hidden: Tensor, generator: torch.Generator | None, temperature: float, truncation: Truncation, count: int
    ) -> Tensor:
        """Return `sample` of `count` draws for temperatures above 0."""
        return Head.draw_tokens(self, hidden, generator, temperature, truncation, count)


def _summed(loss: HeadLoss) -> HeadLoss:
    """Return the sums of a loss per token."""
    parts = loss.nll, loss.group_nll, loss.token_nll, loss.group_correct, loss.token_correct, loss.extra
    total, *others = (None if part is None else part.sum() for part in parts)
    assert total is not None
    return HeadLoss(total, *others)


def _empty_head(head: type[Head]) -> Head:
    """Return a head with a reserve that has no state yet, for pickle."""
    kind = with_reserve(head)
    return kind.__new__(kind)


@cache
def with_reserve(head: type[Head]) -> type[Head]:
    """Return the class of a head with `ReserveMixin`."""
    return type(f"{head.__name__}WithReserve", (ReserveMixin, head), {"__doc__": head.__doc__})
