"""The exact cross entropy of one linear layer over many classes, a chunk of rows at a time: no (N, C) tensor is kept.

Letters: N tokens, D width, C columns of logits, R columns of one class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils.checkpoint import checkpoint

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.heads.losses.functional import (
    at_least_fp32,
    empty_gradients,
    exact_dtype,
    register_saved_gradients,
    working_dtype,
)

DEFAULT_CHUNK_ROWS = 256
"""Rows of logits that exist at once, where a config names no other number; `gvc bench heads` tries 64 to 1,024."""

DEVICE_CHUNK_ROWS = 4096
"""The same on a GPU, which 256 rows do not fill. For 2,948 classes it is 48 MB of logits."""

SEPARATE_NUMBERS = 2**20
"""Up to this number of logits (4 MiB in fp32) a CPU stores probabilities in a new tensor; above, it overwrites."""


def default_chunk_rows(device: torch.device) -> int:
    """Return the number of rows of logits that exist at once on `device`, where a config names no other."""
    return DEFAULT_CHUNK_ROWS if device.type == "cpu" else DEVICE_CHUNK_ROWS


@dataclass(frozen=True, slots=True)
class Linear:
    """The logits W h + b of N states, and how many rows of them exist at once."""

    states: Tensor  # (N, D)
    weight: Tensor  # (C, D)
    bias: Tensor | None  # (C,)
    chunk_rows: int | None  # Rows of logits at once, >= 1; None means all N, in one plain line


def softmax_loss(logits: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the (n, 1) -log p(target) and all (n, C) probabilities, with one exponential per logit on a CPU.

    More than `SEPARATE_NUMBERS` logits are overwritten, if they have the type of the softmax.
    """
    if logits.device.type != "cpu" or logits.dtype != dtype or logits.numel() <= SEPARATE_NUMBERS:
        return _softmax_loss(logits, target, dtype)
    losses = []
    step = max(1, SEPARATE_NUMBERS // logits.shape[1])
    for part, own in zip(logits.split(step), target.split(step), strict=True):
        nll, p = _softmax_loss(part, own, dtype)
        part.copy_(p)
        losses.append(nll)
    return torch.cat(losses), logits


def _softmax_loss(logits: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `softmax_loss`: the loss is log p(target), unless p is too small for its type."""
    if logits.device.type == "cpu" and not is_fake(logits):
        p = logits.softmax(1, dtype=dtype)
        own = p.gather(1, target)
        if float(own.amin()) >= torch.finfo(dtype).tiny:
            return own.log_().neg_(), p
    log_p = logits.log_softmax(1, dtype=dtype)
    return -log_p.gather(1, target), log_p.exp_()


def plain_nll(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return the (N,) cross entropies of softmax(W h + b) in fp32 or finer, 0 where ignored, with (N, C) logits."""
    logits = at_least_fp32(F.linear(states, weight, bias))
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")


def linear_nll(layer: Linear, targets: Tensor, reduction: str) -> Tensor:
    """Return the cross entropy of softmax(W h + b), as `plain_nll` does, with its exact gradients.

    Reduction "none" gives (N,) losses, any other their sum (the caller divides it for a mean).
    """
    states, weight, bias, chunk_rows = layer.states, layer.weight, layer.bias, layer.chunk_rows
    if chunk_rows is None:
        nll = plain_nll(states, weight, bias, targets)
        return nll if reduction == "none" else nll.sum()
    if reduction == "none":  # the chunked operator scales gradients as a whole, not per token: compute logits twice
        return _nll_by_chunks(layer, targets, chunk_rows)
    # F.linear_cross_entropy is as fast on a CPU, but holds the (C, D) gradient twice, and torch 2.13 rounds its summed
    # loss of bf16 inputs to bf16 (2871.2 came back as 2880), whatever its acc_dtype
    classes = targets.masked_fill(targets == IGNORE_INDEX, -1)
    return class_nll(states, weight, bias, classes, weight.shape[0], 1, chunk_rows)


def _nll_by_chunks(layer: Linear, targets: Tensor, chunk_rows: int) -> Tensor:
    """Return `plain_nll`, a chunk of rows at a time; the gradients of weights are summed in their exact type."""
    weight, bias = layer.weight, layer.bias
    pairs = zip(layer.states.split(chunk_rows), targets.split(chunk_rows), strict=True)
    if not torch.is_grad_enabled():  # the first call of `checkpoint` imports torch's compiler, which takes 2 s
        return torch.cat([plain_nll(s, weight, bias, t) for s, t in pairs])
    fine = weight.to(exact_dtype(weight.dtype)), None if bias is None else bias.to(exact_dtype(bias.dtype))
    of_chunk = partial(_plain_nll_in, weight.dtype)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there are no random numbers
    return torch.cat([checkpoint(of_chunk, s, *fine, t, **options) for s, t in pairs])


def _plain_nll_in(dtype: torch.dtype, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return plain_nll(states, weight.to(dtype), None if bias is None else bias.to(dtype), targets)


def class_nll(
    states: Tensor, weight: Tensor, bias: Tensor | None, classes: Tensor, n_single: int, directions: int, rows: int
) -> Tensor:
    """Return the summed -log p(class), where p(class) is the share of its columns in softmax(W h + b).

    The first `n_single` classes have one column each. Every later class has `directions` adjacent columns: its logit is
    their log-sum-exp. The gradients are computed with the loss, chunk by chunk. The slow line that it equals is
    `F.cross_entropy` of those logits. Under autocast the matrix products are in its type, the softmax and all sums over
    chunks in fp32.

    Args:
        states: (N, D).
        weight: (C, D).
        bias: (C,) or None.
        classes: (N,) int64, -1 where ignored.
        n_single: classes of one column, in [0, C].
        directions: R >= 1; C - n_single is a multiple of it.
        rows: rows of logits that exist at once, >= 1.
    """
    sizes = n_single, directions, rows
    given = states, weight, bias, classes, sizes, working_dtype(states), torch.is_grad_enabled()
    if not torch.compiler.is_compiling() and is_fake(states):  # a memory tracker sees the inside of one chunk
        with torch.no_grad():
            class_sums(*given)
    nll: Tensor = _class_nll(*given)[0]
    return nll


def chunks(states: Tensor, rows: int) -> list[slice]:
    """Return the chunks of rows of (N, D) states; of fake states the first alone, since only sizes matter."""
    slices = [slice(start, start + rows) for start in range(0, len(states), rows)]
    return slices[:1] if is_fake(states) else slices


def class_sums(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    sizes: Sequence[int],
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss of `class_nll`, and with `keep` its gradients with respect to states, weight and bias.

    `sizes` are `n_single`, `directions` and `chunk_rows`; matrix products are in `dtype`.
    """
    outputs = _class_shapes(states, weight, bias, classes, sizes, dtype, keep)
    for output in outputs:
        output.zero_()
    table, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
    del weight, bias
    n_single, directions, chunk_rows = sizes
    for rows in chunks(states, chunk_rows):
        add_chunk(rows, states, table, shift, classes, (n_single, directions), outputs)
    return outputs


_class_nll = torch.library.custom_op("grouped_lm::class_nll", class_sums, mutates_args=())


@_class_nll.register_fake
def _class_shapes(
    states: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, keep = rest[-2:]
    d_states, d_weight = empty_gradients(keep, states, weight)
    d_bias = d_weight.new_empty(weight.shape[0] if keep and bias is not None else 0)
    return states.new_empty((), dtype=exact_dtype(dtype)), d_states, d_weight, d_bias


register_saved_gradients(_class_nll, n_values=1, n_gradients=3)


def add_chunk(
    rows: slice,
    states: Tensor,
    table: Tensor,
    shift: Tensor | None,
    classes: Tensor,
    layout: tuple[int, int],
    outputs: tuple[Tensor, ...],
) -> None:
    """Add the loss of some rows to `outputs`, and their gradients if those are kept.

    A function of its own, so that no tensor of one chunk exists during the next. The (C, D) `table` and the (C,)
    `shift` have the type of the matrix products; `layout` is `n_single` and `directions`.
    """
    total, d_states, d_weight, d_bias = outputs
    part, targets = states[rows].to(table.dtype), classes[rows]
    counted = (targets >= 0).unsqueeze(1)
    logits = F.linear(part, table, shift)
    if layout[1] == 1:
        columns = targets.clamp_min(0).unsqueeze(1)
        nll, error = softmax_loss(logits, columns, total.dtype)
        share = error.new_full((1, 1), -1.0).expand_as(columns)
    else:
        error = logits.log_softmax(1, dtype=total.dtype)
        columns, own = _columns(targets.clamp_min(0), *layout, error)
        nll = -own.logsumexp(1, keepdim=True)
        share = -(own + nll).exp()
        error.exp_()
    del logits
    total += nll.masked_fill(~counted, 0).sum()
    if d_weight.shape != table.shape:
        return
    error.scatter_add_(1, columns, share)
    if error.device.type != "cpu" or is_fake(error) or not bool(counted.all()):
        error.mul_(counted)
    if shift is not None:
        d_bias += error.sum(0)
    error = error.to(table.dtype)
    if table.dtype == d_weight.dtype == d_states.dtype:
        torch.mm(error, table, out=d_states[rows])
        d_weight.addmm_(error.T, part)
    else:
        d_states[rows] = error @ table
        d_weight += error.T @ part


def _columns(classes: Tensor, n_single: int, directions: int, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (n, R) columns of each row's class and their log-probabilities, -inf where a class has no more."""
    single = classes < n_single
    first = torch.where(single, classes, n_single + (classes - n_single) * directions).unsqueeze(1)
    steps = torch.arange(directions, device=classes.device)
    beyond = single.unsqueeze(1) & (steps > 0)
    columns = (first + steps).masked_fill(beyond, 0)
    return columns, log_p.gather(1, columns).masked_fill(beyond, -torch.inf)
