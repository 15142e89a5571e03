"""The exact cross entropy of one linear layer over many classes, a chunk of rows at a time: no (N, C) tensor is kept.

Letters: N tokens, D width, C columns of logits, R columns of one class.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.checkpoint import checkpoint

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.heads.base import Head, HeadLoss, at_least_fp32, may_look, reduce_nll

DEFAULT_CHUNK_ROWS = 256
"""Rows of logits at once where nothing else is asked for; `gvc bench heads` tries 64 to 1,024."""

DEVICE_CHUNK_ROWS = 4096
"""The same on a GPU, which 256 rows do not fill: for 2,948 classes 48 MB of logits."""

BESIDE_NUMBERS = 2**20
"""Logits, 4 MiB in fp32, whose probabilities stand beside them on a CPU; those of more overwrite them."""


def default_chunk_rows(device: torch.device) -> int:
    """Return how many rows of logits exist at once on `device` where nothing else is asked for."""
    return DEFAULT_CHUNK_ROWS if device.type == "cpu" else DEVICE_CHUNK_ROWS


def working_dtype(states: Tensor) -> torch.dtype:
    """Return the type of matrix products of these states: that of autocast where it is on, which leaves fp64 alone."""
    kind = states.device.type
    casts = torch.is_autocast_enabled(kind) and states.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else states.dtype


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of softmaxes and sums where matrix products are in `dtype`: fp32 for the half ones."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def scale_saved(saved: Sequence[Tensor], scale: Tensor | None) -> list[Tensor] | list[None]:
    """Return `scaled` gradients, None where the loss that they were saved with has none."""
    return [None] * len(saved) if scale is None else scaled(saved, scale)


def scaled(saved: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """Return gradients of a scalar loss, saved with it, times the gradient of that scalar.

    They are overwritten where the graph is about to be freed and nobody can ask for them again; otherwise a
    backward pass would hold each twice.

    Raises:
        RuntimeError: a derivative of the gradients themselves is wanted, which they do not carry.
    """
    if torch.is_grad_enabled() and get_proxy_mode() is None:
        raise RuntimeError("this loss has first derivatives alone; head.log_prob(hidden) has all of them")
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    last = not keeps_graph() and get_proxy_mode() is None  # a graph that is being traced has memory plans of its own
    factors = [scale.to(gradient.dtype) for gradient in saved]
    return [g.mul_(f) if last else g * f for g, f in zip(saved, factors, strict=True)]


def at_once(states: Tensor, weight: Tensor) -> bool:
    """Return whether a loss may make both steps at once, reading numbers as it goes: those of fp32 or fp64 weights."""
    return may_look(states) and weight.dtype in (torch.float32, torch.float64)


def softmax_loss(logits: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the (n, 1) -log p(target) and all (n, C) probabilities, from one exponential a logit on a CPU.

    Args:
        logits: (n, C), overwritten where there are more than `BESIDE_NUMBERS`, of the type of the softmax.
        target: (n, 1) int64 in [0, C).
        dtype: of the softmax.
    """
    if logits.device.type != "cpu" or logits.dtype != dtype or logits.numel() <= BESIDE_NUMBERS:
        return _softmax_loss(logits, target, dtype)
    losses = []
    step = max(1, BESIDE_NUMBERS // logits.shape[1])
    for part, own in zip(logits.split(step), target.split(step), strict=True):
        nll, p = _softmax_loss(part, own, dtype)
        part.copy_(p)
        losses.append(nll)
    return torch.cat(losses), logits


def _softmax_loss(logits: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `softmax_loss`: the loss is the logarithm of the probability, but where one is too small for its type."""
    if logits.device.type == "cpu" and not is_fake(logits):
        p = logits.softmax(1, dtype=dtype)
        own = p.gather(1, target)
        if float(own.amin()) >= torch.finfo(dtype).tiny:
            return own.log_().neg_(), p
    log_p = logits.log_softmax(1, dtype=dtype)
    return -log_p.gather(1, target), log_p.exp_()


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
    # F.linear_cross_entropy is as fast on a CPU, but holds the (C, D) gradient twice, and torch 2.13 rounds its summed
    # loss of bf16 inputs to bf16 (2871.2 came back as 2880), whatever its acc_dtype
    classes = targets.masked_fill(targets == IGNORE_INDEX, -1)
    return class_nll(states, weight, bias, classes, weight.shape[0], 1, chunk_rows)


def class_nll(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    n_single: int,
    directions: int,
    chunk_rows: int,
) -> Tensor:
    """Return the summed -log p(class), where p(class) is the share of its columns in softmax(W h + b).

    The first `n_single` classes have one column each, those behind them `directions` adjacent ones: the logit of such
    a class is the log-sum-exp of its columns. The gradients are computed with the loss, chunk by chunk; the slow line
    that it equals is `F.cross_entropy` of those logits. Under autocast the matrix products are in its type, the softmax
    and all sums over chunks in fp32.

    Args:
        states: (N, D).
        weight: (C, D).
        bias: (C,) or None.
        classes: (N,) int64, -1 where ignored.
        n_single: classes of one column, in [0, C].
        directions: R >= 1; C - n_single is a multiple of it.
        chunk_rows: rows of logits that exist at once, >= 1.
    """
    dtype, keep = working_dtype(states), torch.is_grad_enabled()
    layout = n_single, directions
    if not torch.compiler.is_compiling() and is_fake(states):  # shows who watches memory the inside of the operator
        with torch.no_grad():
            outputs = _class_nll_shapes(states, weight, bias, classes, *layout, chunk_rows, dtype, keep)
            table, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
            add_chunk(slice(0, chunk_rows), states, table, shift, classes, layout, outputs)
            del outputs, table, shift
    return _class_nll(states, weight, bias, classes, *layout, chunk_rows, dtype, keep)[0]


@torch.library.custom_op("grouped_lm::class_nll", mutates_args=())
def _class_nll(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    n_single: int,
    directions: int,
    chunk_rows: int,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the summed loss, and with `keep` its gradients with respect to states, weight and bias."""
    layout = n_single, directions
    outputs = _class_nll_shapes(states, weight, bias, classes, *layout, chunk_rows, dtype, keep)
    for output in outputs:
        output.zero_()
    table, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
    for start in range(0, states.shape[0], chunk_rows):
        add_chunk(slice(start, start + chunk_rows), states, table, shift, classes, layout, outputs)
    return outputs


def add_chunk(
    rows: slice,
    states: Tensor,
    table: Tensor,
    shift: Tensor | None,
    classes: Tensor,
    layout: tuple[int, int],
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Add the loss of some rows, and their gradients where those have a shape; `table` and `shift` are in their type.

    A function of its own, so that nothing of one chunk lives on in the next.
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
    """Return (n, R) columns of each row's class and their log-probabilities, -inf beyond the only one of a single."""
    single = classes < n_single
    first = torch.where(single, classes, n_single + (classes - n_single) * directions).unsqueeze(1)
    steps = torch.arange(directions, device=classes.device)
    beyond = single.unsqueeze(1) & (steps > 0)
    columns = (first + steps).masked_fill(beyond, 0)
    return columns, log_p.gather(1, columns).masked_fill(beyond, -torch.inf)


@_class_nll.register_fake
def _class_nll_shapes(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    n_single: int,
    directions: int,
    chunk_rows: int,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        states.new_empty((), dtype=exact_dtype(dtype)),
        states.new_empty(states.shape if keep else (0, 0)),
        weight.new_empty(weight.shape if keep else (0, 0)),
        weight.new_empty(weight.shape[0] if keep and bias is not None else 0),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.has_bias = inputs[2] is not None
    ctx.set_materialize_grads(False)  # no zeros for the outputs that nothing is derived from
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx: Any, d_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    d_states, d_weight, d_bias = scale_saved(ctx.saved_tensors, d_total)
    return d_states, d_weight, d_bias if ctx.has_bias else None, *(None for _ in range(6))


_class_nll.register_autograd(_scale_gradients, setup_context=_keep_gradients)


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
