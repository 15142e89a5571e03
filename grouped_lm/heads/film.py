"""The other reading of the paper's second step: scale and shift on the hidden state, then a shared projection.

Source: Vennam, Joishy, Kumaraguru, arXiv 2411.06371; the form is that of FiLM (Perez et al. 2018, arXiv 1709.07871).
Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grouped_lm.grouping import Grouping
from grouped_lm.heads.grouped import GroupedConfig, SharedLayerHead, first_pair
from grouped_lm.heads.losses.shared_nll import SharedLayer


@dataclass(kw_only=True, slots=True)
class FilmConfig(GroupedConfig):
    """Config of `head=film`."""

    name: str = "film"


class FilmHead(SharedLayerHead):
    """Token logits in group g: W_s (scale[g] * h + shift[g]) + bias[g], with scale and shift of D numbers per group.

    `scale` starts at N(0, 1): random signs give the tokens in one slot of different groups nearly unrelated directions.
    With a start at 1 they share one direction, and training hardly separates them: validation perplexity 181 instead
    of 86 after 0.8 million tokens of TinyStories (`runs/log`).

    `bias` is one number per token, so that h need not express the frequency of tokens. Padding slots have -inf there.
    """

    no_weight_decay = ("scale", "shift", "bias")

    def __init__(self, config: GroupedConfig, n_embd: int, grouping: Grouping) -> None:
        super().__init__(config, n_embd, grouping)
        self.scale = nn.Parameter(torch.randn(self.n_group, n_embd))
        self.shift = nn.Parameter(torch.zeros(self.n_group, n_embd))
        self.bias = nn.Parameter(torch.zeros(self.n_group, self.group_size))

    def layer(self) -> SharedLayer:
        """Return the weights of the second step."""
        return SharedLayer(self.slot.weight, self.masked(self.bias), inner=(self.scale, self.shift))

    def fit(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set scale[g, d] w[s, d] nearest to the rows: the first singular pair of the (G, S) numbers of each d."""
        scale, rows = first_pair(self.by_slot(weight).permute(2, 0, 1))  # (D, G), (D, S)
        self.scale.copy_(scale.T)
        self.slot.weight.copy_(rows.T)
        self.bias.copy_(torch.zeros_like(self.bias) if bias is None else self.by_slot(bias))  # not the log counts

    def start_tokens(self, log_share: Tensor) -> None:
        """Set the biases."""
        self.bias.copy_(self.by_slot(log_share))

    def flops_per_token(self) -> float:
        """Return 2 D (G + S) for the projections and about 4 D + 2 S for scale, shift and bias."""
        return 2.0 * self.n_embd * (self.n_group + self.group_size) + 4.0 * self.n_embd + 2.0 * self.group_size
