"""Groups whose tokens have weights of their own: a class-factored full softmax.

Source: classes of words by Goodman 2001 (arXiv cs/0108006), on the groups of arXiv 2411.06371.
Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.grouping import Grouping
from grouped_lm.heads.context import HeadContext
from grouped_lm.heads.grouped import GroupedConfig
from grouped_lm.heads.losses.chunked import class_nll, default_chunk_rows
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32, at_once
from grouped_lm.heads.losses.in_group import in_group_loss
from grouped_lm.heads.losses.kernel_loss import TokenIndex, head_loss, kernel_loss
from grouped_lm.heads.losses.two_steps import TwoStepTargets, two_steps_nll
from grouped_lm.heads.two_level import TwoLevelHead


@dataclass(kw_only=True, slots=True)
class ClassFullConfig(GroupedConfig):
    """Config of `head=class_full`."""

    name: str = "class_full"
    tied: bool = True
    """Share the V x D matrix with the input embedding."""


class ClassFullHead(TwoLevelHead):
    """Token logits in group g: W[ids of g] h + bias[ids of g], a row of D numbers per token.

    A tied full softmax has W too; W_g (G x D) and the biases are new. The fast loss takes the groups one after another
    (`in_group_loss`). `token_logits` is the slow line that it equals.
    """

    def __init__(self, config: ClassFullConfig, weight: nn.Parameter, grouping: Grouping) -> None:
        super().__init__(weight.shape[1], grouping)
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(grouping.vocab_size))

    @classmethod
    def build(cls, config: ClassFullConfig, context: HeadContext) -> "ClassFullHead":
        """Return a freshly initialised head."""
        return cls(config, context.token_weight(config.tied), context.groups(config.group_size, equal_sizes=False))

    def token_logits(self, hidden: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, S) logits of the slots of one group per row; (N, S, D) rows are gathered."""
        ids = self.group_members()[groups].clamp_min(0)
        logits = (self.weight[ids] @ hidden.unsqueeze(-1)).squeeze(-1) + self.bias[ids]
        return logits.masked_fill(self.padding[groups], -torch.inf)

    def all_token_logits(self, hidden: Tensor) -> Tensor:
        """Return the (N, G, S) logits of the slots of every group."""
        return self.masked(F.linear(hidden, self.weight, self.bias)[:, self.group_members().clamp_min(0)])

    def group_log_prob(self, states: Tensor, group: int) -> Tensor:
        """Return the (N, C) log p(token | group) of the C tokens of one group."""
        ids = self.group_members()[group][~self.padding[group]]
        return at_least_fp32(F.linear(states, self.weight[ids], self.bias[ids])).log_softmax(-1)

    def build_token_index(self) -> TokenIndex | None:
        """Return the index of the tokens."""
        none = torch.zeros(0, device=self.token_to_group.device)
        return TokenIndex(self.token_to_group, self.token_to_slot, self.n_group, 0, None, none)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets; the parts are the two cross entropies."""
        index = self.token_index()
        if index is None or accuracy or self.adds_extra:
            return super().loss(hidden, targets, reduction, accuracy)
        states, flat = self.flatten(hidden, targets)
        if not index.fits(states, self.weight):
            return super().loss(hidden, targets, reduction, accuracy)
        first = self.group.weight, self.group.bias
        return head_loss(kernel_loss(states, (self.weight, self.bias), first, index, flat, reduction), targets)

    def summed(self, states: Tensor, groups: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of both cross entropies. On a CPU the gradient of both comes with the second."""
        first = self.group.weight, self.group.bias
        if at_once(states, self.weight):
            targets = TwoStepTargets(groups, (self.n_group, 1), (self.padded_members(), groups, slots))
            total, group_sum = two_steps_nll(states, first, (self.weight, self.bias), targets)
            return group_sum, total - group_sum
        group_sum = class_nll(states, *first, groups, self.n_group, 1, default_chunk_rows(states.device))
        return group_sum, self.inside_loss(states, groups, slots, False)[0].sum()

    def inside_loss(
        self, states: Tensor, groups: Tensor, slots: Tensor, accuracy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return (N,) -log p(token | group), and with `accuracy` the rows whose token is likeliest; group by group."""
        places = self.padded_members(), groups, slots
        nll, hits, _ = in_group_loss(states, self.weight, self.bias, places, self.outside, accuracy)
        return nll, hits if accuracy else None

    def fit(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set the rows and biases of a dense layer."""
        self.weight.copy_(weight)
        self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)  # it may have started at log counts

    def start_tokens(self, log_share: Tensor) -> None:
        """Set the biases."""
        self.bias.copy_(log_share)

    def flops_per_token(self) -> float:
        """Return 2 D (G + S)."""
        return 2.0 * self.n_embd * (self.n_group + self.group_size)
