"""The full softmax through a bottleneck, D -> r -> V: cheaper by D / r, with logits of rank r.

Letters: N tokens, D width, V vocabulary, r rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import setting
from grouped_lm.heads.context import HeadContext, HeadOptions, check_options, init_linear
from grouped_lm.heads.decoding.columns import ColumnBlocks
from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS, Linear
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32
from grouped_lm.heads.regularised import RegularisedHead


@dataclass(kw_only=True, slots=True)
class LowRankConfig(HeadOptions):
    """Config of `head=low_rank`."""

    name: str = "low_rank"
    rank: int = setting(32, 1, 10**6, unit="dimensions")
    """Width r of the bottleneck, >= 1. It saves nothing if r is D or more."""
    bias: bool = False
    """A bias per token."""
    chunk_rows: int = setting(DEFAULT_CHUNK_ROWS, 1, 10**9, unit="rows of logits")
    """Rows of logits that exist at once, >= 1."""

    def __post_init__(self) -> None:
        check_options(self)


class LowRankHead(RegularisedHead):
    """logits = W (A h) + b, with A of r x D and W of V x r; exact, in chunks of rows.

    The logits of any number of contexts have rank r at most. That costs quality: the softmax bottleneck (Yang et al.
    2018, arXiv 1711.03953). A keeps the scale of h, so that logits start as those of the dense head.
    """

    def __init__(self, config: LowRankConfig, n_embd: int, vocab_size: int) -> None:
        super().__init__(n_embd, vocab_size)
        self.rank, self.chunk_rows = config.rank, config.chunk_rows
        self.down = nn.Linear(n_embd, self.rank, bias=False)
        init_linear(self.down.weight, std=self.rank**-0.5)  # ||A h|| is about ||h||
        self.weight = nn.Parameter(torch.empty(vocab_size, self.rank))
        init_linear(self.weight)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if config.bias else None

    @classmethod
    def build(cls, config: LowRankConfig, context: HeadContext) -> "LowRankHead":
        """Return a freshly initialised head."""
        return cls(config, context.n_embd, context.vocab_size)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets; there are no parts."""
        states, flat = self.flatten(hidden, targets)
        layer = Linear(self.down(states), self.weight, self.bias, self.chunk_rows)
        return self.linear_loss(layer, flat, targets.shape, reduction)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token."""
        return F.log_softmax(at_least_fp32(F.linear(self.down(hidden), self.weight, self.bias)), dim=-1)

    def blocks(self, hidden: Tensor) -> ColumnBlocks:
        """Return the tokens in blocks for (N, D) states."""
        return ColumnBlocks(self.down(hidden), self.weight, self.bias)

    def flops_per_token(self) -> float:
        """Return 2 r (D + V)."""
        return 2.0 * self.rank * (self.n_embd + self.vocab_size)

    def logits_per_token(self) -> float:
        """Return V + r: the logits, and the bottleneck before them."""
        return float(self.rank + self.vocab_size)
