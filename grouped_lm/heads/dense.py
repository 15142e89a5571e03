"""The full softmax over V tokens: the baseline, plain or exact in chunks.

Letters: N tokens, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions

from grouped_lm.config import check_range
from grouped_lm.heads.base import (
    IGNORE_INDEX,
    Head,
    HeadContext,
    HeadLoss,
    at_least_fp32,
    flatten,
    reduce_nll,
)


@dataclass(kw_only=True, slots=True)
class DenseConfig:
    """`head=dense`."""

    name: str = "dense"
    tied: bool = True
    """Share the V x D matrix with the input embedding, as GPT-2 and GPT-Neo do."""
    chunk_rows: int | None = None
    """Rows of logits that exist at once, >= 1; null is the plain line with all N rows. 256 is a good start."""

    def __post_init__(self) -> None:
        check_range("head.chunk_rows", self.chunk_rows, 1, 10**9)


class DenseHead(Head):
    """logits = W h; loss = cross entropy.

    With `chunk_rows`, torch's `F.linear_cross_entropy` computes the same loss and gradients (they are exact) without
    ever holding N x V logits.
    """

    def __init__(self, config: DenseConfig, weight: nn.Parameter) -> None:
        super().__init__(n_embd=weight.shape[1], vocab_size=weight.shape[0])
        self.chunk_rows = config.chunk_rows
        self.weight = weight

    @classmethod
    def build(cls, config: Any, context: HeadContext) -> "DenseHead":
        """See `Head.build`."""
        return cls(config, context.token_weight(config.tied))

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """See `Head.loss`; there are no parts."""
        states, flat = flatten(hidden, targets)
        if self.chunk_rows is None:
            return HeadLoss(nll=reduce_nll(self._plain_nll(states, flat).view(targets.shape), targets, reduction))
        if reduction == "none":  # the chunked op scales gradients as a whole, not per token: chunk the plain line
            pairs = zip(states.split(self.chunk_rows), flat.split(self.chunk_rows), strict=True)
            return HeadLoss(nll=torch.cat([self._plain_nll(s, t) for s, t in pairs]).view(targets.shape))
        # In the weights' own precision, also under bf16 autocast: torch 2.13 rounds the summed loss of bf16 inputs
        # to bf16 (2871.2 came back as 2880), whatever its acc_dtype.
        total = F.linear_cross_entropy(
            states.to(self.weight.dtype),
            self.weight,
            flat,
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            options=LinearCrossEntropyOptions(batch_chunk_size=self.chunk_rows),
        )
        count = (flat != IGNORE_INDEX).sum().clamp_min(1)
        return HeadLoss(nll=total if reduction == "sum" else total / count)

    def _plain_nll(self, states: Tensor, targets: Tensor) -> Tensor:
        logits = at_least_fp32(F.linear(states, self.weight))
        return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")

    def log_prob(self, hidden: Tensor) -> Tensor:
        """See `Head.log_prob`."""
        return F.log_softmax(at_least_fp32(F.linear(hidden, self.weight)), dim=-1)

    def flops_per_token(self) -> float:
        """Return 2 D V."""
        return 2.0 * self.n_embd * self.vocab_size
