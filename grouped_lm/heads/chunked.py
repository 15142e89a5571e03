"""The exact cross entropy of one linear layer over many classes, a chunk of rows at a time: no (N, C) tensor is kept.

Letters: N tokens, D width, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.utils.checkpoint import checkpoint

from grouped_lm.heads.base import IGNORE_INDEX, Head, HeadLoss, at_least_fp32, reduce_nll

DEFAULT_CHUNK_ROWS = 256
"""Rows of logits at once where nothing else is asked for; `gvc bench heads` tries 64 to 1,024."""


def plain_nll(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return (N,) cross entropies of softmax(W h + b) in fp32 or finer, 0 where ignored, through (N, C) logits."""
    logits = at_least_fp32(F.linear(states, weight, bias))
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")


def linear_nll(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk_rows: int | None,
    reduction: str,
) -> Tensor:
    """Return the cross entropy of softmax(W h + b), as `plain_nll` does, and its exact gradients.

    Args:
        states: (N, D).
        weight: (C, D).
        bias: (C,) or None.
        targets: (N,) int64 in [0, C), or IGNORE_INDEX.
        chunk_rows: rows of logits that exist at once, >= 1; None means all N, in one plain line.
        reduction: "none" for (N,) losses, else their sum (the caller divides it for a mean).
    """
    if chunk_rows is None:
        nll = plain_nll(states, weight, bias, targets)
        return nll if reduction == "none" else nll.sum()
    if reduction == "none":  # the chunked operator scales gradients as a whole, not per token: compute logits twice
        pairs = zip(states.split(chunk_rows), targets.split(chunk_rows), strict=True)
        losses = [checkpoint(plain_nll, s, weight, bias, t, use_reentrant=False) for s, t in pairs]
        return torch.cat(losses)
    # In the weights' own precision, also under bf16 autocast: torch 2.13 rounds the summed loss of bf16 inputs
    # to bf16 (2871.2 came back as 2880), whatever its acc_dtype.
    return F.linear_cross_entropy(
        states.to(weight.dtype),
        weight,
        targets,
        linear_bias=bias,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        options=LinearCrossEntropyOptions(batch_chunk_size=chunk_rows),
    )


def linear_loss(
    head: Head,
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    chunk_rows: int | None,
    shape: torch.Size,
    reduction: str,
    share: Tensor | None = None,
) -> HeadLoss:
    """Return the loss of a head that is one softmax, with what its `regularise` adds.

    Args:
        head: whose loss it is.
        states, weight, bias, classes, chunk_rows: see `linear_nll`.
        shape: of the head's targets.
        reduction: mean, sum or none.
        share: (N,) -log p(target | its class), where a class has more than one token.
    """

    def finish(values: Tensor) -> Tensor:
        return reduce_nll(values.view(shape) if reduction == "none" else values, classes, reduction)

    nll = linear_nll(states, weight, bias, classes, chunk_rows, "none" if head.adds_extra else reduction)
    total = nll if share is None else nll + (share if nll.ndim else share.sum())
    if not head.adds_extra:
        return HeadLoss(nll=finish(total))
    known = classes.clamp_min(0)
    target, mean = (states * F.embedding(known, weight)).sum(-1), states @ weight.mean(0).to(states.dtype)
    if bias is not None:
        target, mean = target + bias[known], mean + bias.mean()
    extra = head.extra_of(nll, target, mean, classes != IGNORE_INDEX)
    return HeadLoss(nll=finish(total), extra=finish(extra))
