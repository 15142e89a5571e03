"""What every two-step head shares: p(token) = p(group) p(token | group), both steps a softmax.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.grouping import Grouping, group_members
from grouped_lm.heads.base import (
    IGNORE_INDEX,
    HeadLoss,
    at_least_fp32,
    classify,
    flatten,
    init_linear,
    two_step_loss,
)
from grouped_lm.heads.decoding.best_first import BestFirstHead


class TwoLevelHead(BestFirstHead):
    """Group logits W_g h, and token logits inside one group that a subclass defines.

    The loss needs (N, G) and (N, S) numbers where the full softmax needs (N, V); it is exact, since
    CE(group) + CE(token in group) = -log p(token) (arXiv 2411.06371, "Loss"). Padding slots of partial groups
    are held at -inf by `padding`, with which subclasses mask their shift: (G, S) numbers a step instead of a mask per
    token. The tables of where tokens stand are int32: at 1,024 tokens of width 128 they are as large as the states.
    """

    regularised: ClassVar[bool] = True

    token_to_group: Tensor
    token_to_slot: Tensor
    padding: Tensor
    _members: Tensor | None

    def __init__(self, n_embd: int, grouping: Grouping) -> None:
        super().__init__(n_embd, grouping.vocab_size)
        self.n_group, self.group_size = grouping.n_group, grouping.group_size
        self.group = nn.Linear(n_embd, self.n_group)
        init_linear(self.group.weight)
        nn.init.zeros_(self.group.bias)
        self.register_buffer("token_to_group", grouping.token_to_group.to(torch.int32, copy=True))
        self.register_buffer("token_to_slot", grouping.token_to_slot.to(torch.int32, copy=True))
        unfilled = torch.zeros(self.n_group, self.group_size, dtype=torch.bool)
        self.register_buffer("padding", unfilled, persistent=False)
        self.register_buffer("_members", None, persistent=False)
        self.find_padding()

    def find_padding(self) -> None:
        """Derive `padding` from the grouping; needed again when that was loaded.

        It is true at the (G, S) slots that no token has.
        """
        self._members = None
        self.padding = torch.ones_like(self.padding)
        self.padding[self.token_to_group, self.token_to_slot] = False

    def masked(self, table: Tensor) -> Tensor:
        """Return (..., G, S) numbers with -inf at padding slots."""
        return table.masked_fill(self.padding, -torch.inf)

    @property
    @torch.inference_mode(False)  # made once, for training too
    def members(self) -> Tensor:
        """The (G, S) ids of every group, -1 where it has no more. Training needs none: made when first asked for."""
        if self._members is None:
            self._members = group_members(self.token_to_group, self.token_to_slot, self.n_group, self.group_size)
        return self._members

    def after_load(self) -> None:
        """See `Head.after_load`."""
        self.find_padding()

    @abstractmethod
    def token_logits(self, hidden: Tensor, groups: Tensor) -> Tensor:
        """Return (N, S) logits of the slots of one group per row, -inf at padding slots.

        Args:
            hidden: (N, D).
            groups: (N,) int64 in [0, G).
        """

    @abstractmethod
    def all_token_logits(self, hidden: Tensor) -> Tensor:
        """Return (N, G, S) logits of the slots of every group: the slow line that `token_logits` is a part of."""

    def summed(self, states: Tensor, groups: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of both cross entropies, with no (N, G) or (N, S) numbers kept.

        Args:
            states: (N, D).
            groups: (N,) int64 in [0, G), -1 where ignored.
            slots: (N,) int64 in [0, S).
        """
        counted, known = groups >= 0, groups.clamp_min(0)
        group_nll, _ = classify(at_least_fp32(self.group(states)), known, counted, False)
        return group_nll.sum(), self.inside_loss(states, groups, slots, False)[0].sum()

    def inside_loss(
        self, states: Tensor, groups: Tensor, slots: Tensor, accuracy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return (N,) -log p(token | group), zero where ignored, and with `accuracy` which is the likeliest.

        Arguments as in `summed`.
        """
        logits = at_least_fp32(self.token_logits(states, groups.clamp_min(0)))
        return classify(logits, slots, groups >= 0, accuracy)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """See `Head.loss`; the parts are the two cross entropies, of which a sum's have no gradient of their own."""
        states, flat = flatten(hidden, targets)
        counted = flat != IGNORE_INDEX
        token = flat.clamp_min(0)
        groups, slots = self.groups_and_slots(token)
        counted_groups = groups.masked_fill(~counted, -1)
        if reduction != "none" and not accuracy and not self.adds_extra:
            group_sum, token_sum = self.summed(states, counted_groups, slots)
            return two_step_loss(targets, reduction, (group_sum, None), (token_sum, None))
        group_logits = at_least_fp32(self.group(states))
        group = classify(group_logits, groups, counted, accuracy)
        inside = self.inside_loss(states, counted_groups, slots, accuracy)
        extra = self.logits_extra(group_logits, groups, group[0], counted)
        return two_step_loss(targets, reduction, group, inside, extra)

    def shortlist_ids(self) -> Tensor:
        """See `BestFirstHead.shortlist_ids`: none."""
        return self.token_to_group[:0].long()

    def group_members(self) -> Tensor:
        """See `BestFirstHead.group_members`."""
        return self.members

    def groups_and_slots(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `BestFirstHead.groups_and_slots`."""
        return self.token_to_group[tokens].long(), self.token_to_slot[tokens].long()

    def class_log_prob(self, states: Tensor) -> Tensor:
        """See `BestFirstHead.class_log_prob`."""
        return F.log_softmax(at_least_fp32(self.group(states)), dim=-1)

    def in_group_log_prob(self, states: Tensor, groups: Tensor) -> Tensor:
        """See `BestFirstHead.in_group_log_prob`."""
        return F.log_softmax(at_least_fp32(self.token_logits(states, groups)), dim=-1)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """See `Head.log_prob`."""
        states = hidden.reshape(-1, self.n_embd)
        group = self.class_log_prob(states)
        token = F.log_softmax(at_least_fp32(self.all_token_logits(states)), dim=-1)
        joint = (group.unsqueeze(-1) + token).flatten(1)
        place = self.token_to_group.long() * self.group_size + self.token_to_slot
        return joint[:, place].view(*hidden.shape[:-1], self.vocab_size)
