"""The paper's head, read literally (`grouped` in every command, `paper` in prose), and what `film` shares with it.

Source: Vennam, Joishy, Kumaraguru, arXiv 2411.06371: one shared linear layer, scaled and shifted per group.
Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import setting
from grouped_lm.grouping import Grouping
from grouped_lm.heads.context import HeadContext, HeadOptions, check_options, init_linear
from grouped_lm.heads.losses.functional import at_least_fp32, pick
from grouped_lm.heads.losses.shared_nll import SharedLayer, shared_nll
from grouped_lm.heads.two_level import TwoLevelHead


@dataclass(kw_only=True, slots=True)
class GroupedConfig(HeadOptions):
    """Config of `head=grouped`."""

    name: str = "grouped"
    group_size: int | None = setting(None, 1, 10**9, unit="slots")
    """Slots per group S, in [1, V]; null means round(sqrt V), the least memory."""

    def __post_init__(self) -> None:
        check_options(self)


class SharedLayerHead(TwoLevelHead):
    """A head whose second step is one linear layer for all groups, with a scale and a shift of each group.

    The shared layer starts at N(0, 1/D).
    """

    def __init__(self, config: GroupedConfig, n_embd: int, grouping: Grouping) -> None:
        super().__init__(n_embd, grouping)
        self.slot = nn.Linear(n_embd, self.group_size, bias=False)
        init_linear(self.slot.weight, std=n_embd**-0.5)

    @classmethod
    def build(cls, config: GroupedConfig, context: HeadContext) -> "SharedLayerHead":
        """Return a freshly initialised head."""
        return cls(config, context.n_embd, context.groups(config.group_size))

    @abstractmethod
    def layer(self) -> SharedLayer:
        """Return the weights of the second step."""

    def token_logits(self, hidden: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, S) logits of the slots of one group per row; the slow line that `shared_nll` equals."""
        layer, states = self.layer(), hidden
        if layer.inner is not None:
            scale, shift = layer.inner
            states = pick(scale, groups) * hidden + pick(shift, groups)
        logits = F.linear(states, layer.weight)
        if layer.outer is not None:
            logits = pick(layer.outer, groups) * logits
        return logits + pick(layer.table, groups)

    def all_token_logits(self, hidden: Tensor) -> Tensor:
        """Return the (N, G, S) logits of the slots of every group."""
        layer, states = self.layer(), hidden.unsqueeze(1)
        if layer.inner is not None:
            scale, shift = layer.inner
            states = scale * states + shift
        logits = F.linear(states, layer.weight)
        return (logits if layer.outer is None else layer.outer * logits) + layer.table

    def group_log_prob(self, states: Tensor, group: int) -> Tensor:
        """Return the (N, S) log p(token | group) of one group, which needs no row of weights per state."""
        layer = self.layer()
        if layer.inner is not None:
            scale, shift = layer.inner
            states = scale[group] * states + shift[group]
        logits = F.linear(states, layer.weight)
        if layer.outer is not None:
            logits = layer.outer[group] * logits
        return at_least_fp32(logits + layer.table[group]).log_softmax(-1)

    def summed(self, states: Tensor, groups: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of both cross entropies; the gradient of both comes with the second."""
        total, group_total = shared_nll(states, self.group.weight, self.group.bias, self.layer(), groups, slots)
        return group_total, total - group_total

    def by_slot(self, values: Tensor) -> Tensor:
        """Return (V, ...) values of tokens as (G, S, ...), 0 at padding slots."""
        members = self.group_members()
        there = (members >= 0).reshape(*members.shape, *[1] * (values.ndim - 1))
        return values[members.clamp_min(0)] * there


def first_pair(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first singular pair of (K, A, B) matrices, (K, A) and (K, B), each times the root of its size."""
    left, sizes, right = torch.linalg.svd(matrices.float(), full_matrices=False)
    root, dtype = sizes[:, 0].to(matrices.dtype).sqrt()[:, None], matrices.dtype
    return left[:, :, 0].to(dtype) * root, right[:, 0].to(dtype) * root


class GroupedHead(SharedLayerHead):
    """Token logits in group g: scale[g] * (W_s h) + shift[g], with scale and shift of S numbers per group.

    The scale starts at 1. The start of the shared layer matters: with GPT-2's N(0, 0.02) the validation perplexity
    after 0.8 million tokens of TinyStories is 214 instead of 160 (`runs/log`).

    The tokens in one slot of all groups share a direction in h, so V tokens have G + S directions. `shift` is a bias
    per token.
    """

    no_weight_decay = ("scale", "shift")

    def __init__(self, config: GroupedConfig, n_embd: int, grouping: Grouping) -> None:
        super().__init__(config, n_embd, grouping)
        self.scale = nn.Parameter(torch.ones(self.n_group, self.group_size))
        self.shift = nn.Parameter(torch.zeros(self.n_group, self.group_size))

    def layer(self) -> SharedLayer:
        """Return the weights of the second step."""
        return SharedLayer(self.slot.weight, self.masked(self.shift), outer=self.scale)

    def fit(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set scale[g, s] w[s] nearest to the rows: the first singular pair of the (G, D) numbers of each slot s."""
        scale, rows = first_pair(self.by_slot(weight).permute(1, 0, 2))  # (S, G), (S, D)
        self.scale.copy_(scale.T)
        self.slot.weight.copy_(rows)
        self.shift.copy_(torch.zeros_like(self.shift) if bias is None else self.by_slot(bias))  # not the log counts

    def start_tokens(self, log_share: Tensor) -> None:
        """Set the shifts."""
        self.shift.copy_(self.by_slot(log_share))

    def flops_per_token(self) -> float:
        """Return 2 D (G + S) for the two projections and about 4 S for scale, shift and gathers."""
        return 2.0 * self.n_embd * (self.n_group + self.group_size) + 4.0 * self.group_size
