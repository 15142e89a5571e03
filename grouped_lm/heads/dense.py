"""The full softmax over V tokens: the baseline, plain or exact in chunks.

Letters: N tokens, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import setting
from grouped_lm.heads.context import HeadContext, HeadOptions, check_options
from grouped_lm.heads.decoding.columns import ColumnBlocks
from grouped_lm.heads.losses.chunked import Linear
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32
from grouped_lm.heads.regularised import RegularisedHead


@dataclass(kw_only=True, slots=True)
class DenseConfig(HeadOptions):
    """Config of `head=dense`."""

    name: str = "dense"
    tied: bool = True
    """Share the V x D matrix with the input embedding, as GPT-2 and GPT-Neo do."""
    bias: bool = False
    """A bias per token, as heads with groups have one; GPT-2 and GPT-Neo have none."""
    chunk_rows: int | None = setting(None, 1, 10**9, unit="rows of logits")
    """Rows of logits that exist at once, >= 1; null is the plain line with all N rows. 256 is a good start."""

    def __post_init__(self) -> None:
        check_options(self)


class DenseHead(RegularisedHead):
    """logits = W h + b; loss = cross entropy.

    With `chunk_rows` the loss and gradients are the same, and exact, but N x V logits never exist.
    """

    def __init__(self, config: DenseConfig, weight: nn.Parameter) -> None:
        super().__init__(n_embd=weight.shape[1], vocab_size=weight.shape[0])
        self.chunk_rows = config.chunk_rows
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(self.vocab_size)) if config.bias else None

    @classmethod
    def build(cls, config: DenseConfig, context: HeadContext) -> "DenseHead":
        """Return a freshly initialised head."""
        return cls(config, context.token_weight(config.tied))

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets; there are no parts."""
        states, flat = self.flatten(hidden, targets)
        layer = Linear(states, self.weight, self.bias, self.chunk_rows)
        return self.linear_loss(layer, flat, targets.shape, reduction)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token."""
        return F.log_softmax(at_least_fp32(F.linear(hidden, self.weight, self.bias)), dim=-1)

    def blocks(self, hidden: Tensor) -> ColumnBlocks:
        """Return the tokens in blocks for (N, D) states."""
        return ColumnBlocks(hidden, self.weight, self.bias)

    def flops_per_token(self) -> float:
        """Return 2 D V."""
        return 2.0 * self.n_embd * self.vocab_size
