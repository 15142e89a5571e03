"""The common part of heads of two softmaxes: p(token) = p(group) p(token | group).

Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.grouping import Grouping, group_members
from grouped_lm.heads.context import GroupedTokens, init_linear, log_mass
from grouped_lm.heads.decoding.best_first import BestFirstHead
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32, classify, two_step_loss


class TwoLevelHead(GroupedTokens, BestFirstHead):
    """Group logits W_g h, and token logits inside one group that a subclass defines.

    The loss needs (N, G) and (N, S) numbers, the full softmax (N, V). It is exact, since CE(group) + CE(token in group)
    = -log p(token) (arXiv 2411.06371, "Loss"). Padding slots have the logit -inf: subclasses mask their shift with
    `padding`, which takes (G, S) numbers a step instead of a mask per token.
    """

    padding: Tensor  # (G, S) bool, true at slots without a token
    _members: Tensor | None

    def __init__(self, n_embd: int, grouping: Grouping) -> None:
        super().__init__(n_embd, grouping.vocab_size)
        self.n_group, self.group_size = grouping.n_group, grouping.group_size
        self.group = nn.Linear(n_embd, self.n_group)
        init_linear(self.group.weight)
        nn.init.zeros_(self.group.bias)
        self.assign_groups(grouping.token_to_group, grouping.token_to_slot, self.n_group, self.group_size)
        filled = torch.zeros(self.n_group, self.group_size, dtype=torch.bool)
        self.register_buffer("padding", filled, persistent=False)
        self.register_buffer("_members", None, persistent=False)
        self.after_load()

    def masked(self, table: Tensor) -> Tensor:
        """Return (..., G, S) numbers with -inf at padding slots."""
        return table.masked_fill(self.padding, -torch.inf)

    @torch.inference_mode(False)  # computed once, also for training
    def group_members(self) -> Tensor:
        """Return the (G, S) ids of every group, -1 at padding slots. Training does not need them."""
        if self._members is None:
            self._members = group_members(self.token_to_group, self.token_to_slot, self.n_group, self.group_size)
        return self._members

    def after_load(self) -> None:
        """Update `padding` and the members of groups."""
        self.sort_tokens()
        self._members = None
        self.padding = torch.ones_like(self.padding)
        self.padding[self.token_to_group, self.token_to_slot] = False

    @abstractmethod
    def start_tokens(self, log_share: Tensor) -> None:
        """Set the biases of the tokens to (V,) log-probabilities."""

    def start_from(self, log_share: Tensor) -> None:
        """Set the biases so that hidden states of zero give the (V,) log-probabilities."""
        self.start_tokens(log_share)
        self.group.bias.copy_(log_mass(log_share, self.token_to_group, self.n_group))

    @abstractmethod
    def token_logits(self, hidden: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, S) logits of the slots of one group in [0, G) per row, -inf at padding slots."""

    @abstractmethod
    def all_token_logits(self, hidden: Tensor) -> Tensor:
        """Return the (N, G, S) logits of the slots of every group, of which `token_logits` is a part."""

    def summed(self, states: Tensor, groups: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of both cross entropies; groups are -1 where ignored. Subclasses keep no (N, G) numbers."""
        counted, known = groups >= 0, groups.clamp_min(0)
        group_nll, _ = classify(at_least_fp32(self.group(states)), known, counted, False)
        return group_nll.sum(), self.inside_loss(states, groups, slots, False)[0].sum()

    def inside_loss(
        self, states: Tensor, groups: Tensor, slots: Tensor, accuracy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return (N,) -log p(token | group), zero where ignored, and with `accuracy` the rows whose token is likeliest.

        The (N,) groups are in [0, G), or -1 where ignored.
        """
        logits = at_least_fp32(self.token_logits(states, groups.clamp_min(0)))
        return classify(logits, slots, groups >= 0, accuracy)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets; the parts are the two cross entropies."""
        states, flat = self.flatten(hidden, targets)
        counted = flat != IGNORE_INDEX
        groups, slots = self.groups_and_slots(flat.clamp_min(0))
        counted_groups = groups.masked_fill(~counted, -1)
        if reduction != "none" and not accuracy and not self.adds_extra:
            group_sum, token_sum = self.summed(states, counted_groups, slots)
            return two_step_loss(targets, reduction, (group_sum, None), (token_sum, None))
        group_logits = at_least_fp32(self.group(states))
        group = classify(group_logits, groups, counted, accuracy)
        token = self.inside_loss(states, counted_groups, slots, accuracy)
        extra = self.logits_extra(group_logits, groups, group[0], counted)
        return two_step_loss(targets, reduction, group, token, extra)

    def shortlist_ids(self) -> Tensor:
        """Return (0,) ids: all tokens are in groups."""
        return self.token_to_group[:0].long()

    def class_log_prob(self, states: Tensor) -> Tensor:
        """Return the (N, G) log-probabilities of the groups."""
        return F.log_softmax(at_least_fp32(self.group(states)), dim=-1)

    def in_group_log_prob(self, states: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, S) log p(token | group) for one group per row."""
        return F.log_softmax(at_least_fp32(self.token_logits(states, groups)), dim=-1)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token."""
        states = hidden.reshape(-1, self.n_embd)
        group = self.class_log_prob(states)
        token = F.log_softmax(at_least_fp32(self.all_token_logits(states)), dim=-1)
        joint = (group.unsqueeze(-1) + token).flatten(1)
        place = self.token_to_group.long() * self.group_size + self.token_to_slot
        return joint[:, place].view(*hidden.shape[:-1], self.vocab_size)
