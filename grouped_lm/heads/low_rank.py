"""The full softmax through a bottleneck: D -> r -> V, cheaper by D / r, and bound to rank r.

Letters: N tokens, D width, V vocabulary, r rank.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import check_range
from grouped_lm.heads.base import Head, HeadContext, HeadLoss, at_least_fp32, flatten, init_linear
from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS, linear_loss


@dataclass(kw_only=True, slots=True)
class LowRankConfig:
    """`head=low_rank`."""

    name: str = "low_rank"
    rank: int = 32
    """Width r of the bottleneck, >= 1; from D on it saves nothing."""
    bias: bool = False
    """A bias per token."""
    chunk_rows: int = DEFAULT_CHUNK_ROWS
    """Rows of logits that exist at once, >= 1."""

    def __post_init__(self) -> None:
        check_range("head.rank", self.rank, 1, 10**6)
        check_range("head.chunk_rows", self.chunk_rows, 1, 10**9)


class LowRankHead(Head):
    """logits = W (A h) + b, with A of r x D and W of V x r; exact, in chunks of rows.

    Logits of any number of contexts have rank r at most, which the softmax bottleneck says costs quality (Yang et al.
    2018, arXiv 1711.03953). A keeps the scale of h, so that logits start as the dense head's do.
    """

    regularised: ClassVar[bool] = True

    def __init__(self, config: LowRankConfig, n_embd: int, vocab_size: int) -> None:
        super().__init__(n_embd, vocab_size)
        self.rank, self.chunk_rows = config.rank, config.chunk_rows
        self.down = nn.Linear(n_embd, self.rank, bias=False)
        init_linear(self.down.weight, std=self.rank**-0.5)  # ||A h|| is about ||h||
        self.weight = nn.Parameter(torch.empty(vocab_size, self.rank))
        init_linear(self.weight)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if config.bias else None

    @classmethod
    def build(cls, config: Any, context: HeadContext) -> "LowRankHead":
        """See `Head.build`."""
        return cls(config, context.n_embd, context.vocab_size)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """See `Head.loss`; there are no parts."""
        states, flat = flatten(hidden, targets)
        low = self.down(states)
        return linear_loss(self, low, self.weight, self.bias, flat, self.chunk_rows, targets.shape, reduction)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """See `Head.log_prob`."""
        return F.log_softmax(at_least_fp32(F.linear(self.down(hidden), self.weight, self.bias)), dim=-1)

    def flops_per_token(self) -> float:
        """Return 2 r (D + V)."""
        return 2.0 * self.rank * (self.n_embd + self.vocab_size)

    def logits_per_token(self) -> float:
        """See `Head.logits_per_token`: V, and r before them."""
        return float(self.rank + self.vocab_size)
