"""The summed loss of two steps whose second is one layer that all groups share, a chunk of rows at a time.

The gradients are computed with the loss, so no (N, G) or (N, S) tensor outlives its chunk, and the states have one
gradient. The slow lines that it equals are `TwoLevelHead.loss` with `SharedLayerHead.token_logits`.

Letters: N tokens, D width, G groups, S slots per group.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from grouped_lm.heads.losses.chunked import default_chunk_rows, exact_dtype, scale_saved, softmax_loss, working_dtype
from grouped_lm.heads.losses.kernels import chosen

Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The sums of both steps and of the first, then the gradients of states and weights, empty where there is none."""


@dataclass(frozen=True, slots=True)
class SharedLayer:
    """Token logits in group g: outer[g] * (W (scale[g] * h + shift[g])) + table[g]; what is None is left out."""

    weight: Tensor
    """W, (S, D)."""
    table: Tensor
    """(G, S), -inf at slots that no token has."""
    inner: tuple[Tensor, Tensor] | None = None
    """scale and shift, (G, D) each."""
    outer: Tensor | None = None
    """(G, S)."""


def shared_nll(
    states: Tensor, group_weight: Tensor, group_bias: Tensor, layer: SharedLayer, groups: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the summed -log p(token), and the part of it that is -log p(group), which carries no gradient.

    Under autocast the matrix products are in its type, the softmax and all sums over chunks in fp32.

    Args:
        states: (N, D).
        group_weight: (G, D), the first step.
        group_bias: (G,).
        layer: the second step.
        groups: (N,) int64 in [0, G), or -1 for rows that count nowhere.
        slots: (N,) int64 in [0, S).
    """
    weights = group_weight, group_bias, layer.weight, layer.table, *(layer.inner or (None, None)), layer.outer
    dtype, keep = working_dtype(states), torch.is_grad_enabled()
    if not torch.compiler.is_compiling() and is_fake(states):  # shows who watches memory the inside of the operator
        with torch.no_grad():
            outputs = _shapes(states, *weights, groups, slots, dtype, keep)
            _add_chunk(slice(0, default_chunk_rows(states.device)), states, weights, groups, slots, dtype, outputs)
            del outputs
    total, group_total, *_ = _shared_nll(states, *weights, groups, slots, dtype, keep)
    return total, group_total


@torch.library.custom_op("grouped_lm::shared_nll", mutates_args=())
def _shared_nll(
    states: Tensor,
    group_weight: Tensor,
    group_bias: Tensor,
    weight: Tensor,
    table: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    outer: Tensor | None,
    groups: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return `Outputs`, gradients with `keep` alone."""
    weights = group_weight, group_bias, weight, table, scale, shift, outer
    outputs = _shapes(states, *weights, groups, slots, dtype, keep)
    for output in outputs:
        output.zero_()
    step = default_chunk_rows(states.device)
    whole = states.device.type == "cpu" and bool((groups >= 0).all())
    for start in range(0, states.shape[0], step):
        _add_chunk(slice(start, start + step), states, weights, groups, slots, dtype, outputs, whole)
    return outputs


def _add_chunk(
    rows: slice,
    states: Tensor,
    weights: Weights,
    groups: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
    outputs: Outputs,
    whole: bool = False,
) -> None:
    """Add the losses of some rows, and their gradients where those have a shape; `whole` where all of them count."""
    group_weight, group_bias, weight, table, scale, shift, outer = weights
    total, group_total, d_states, d_group_weight, d_group_bias, d_weight, d_table, d_scale, d_shift, d_outer = outputs
    keep, part, own = d_states.shape == states.shape, states[rows], groups[rows].clamp_min(0)
    counted = None if whole else (groups[rows] >= 0).unsqueeze(1)

    if dtype == total.dtype:
        logits = torch.addmm(group_bias, part, group_weight.T)
    else:
        logits = _product(part, group_weight.T, dtype).to(total.dtype).add_(group_bias)
    value, error = _softmax(logits, own, counted)
    total += value
    group_total += value
    if keep:
        d_group_bias += error.sum(0)
        _add_product(d_states[rows], error, group_weight, dtype)
        _add_product(d_group_weight, error.T, part, dtype)
    del logits, error

    fits = outer is not None and scale is None and outer.dtype is torch.float32  # which sums are added to atomically
    if outer is not None and fits and chosen(states.device, dtype, weight.shape[0], repeats=False):
        from grouped_lm.heads.losses.kernels.slot_loss import SlotGradients, slot_loss

        to = SlotGradients(d_states[rows], d_weight, d_outer, d_table) if keep else None
        total += slot_loss(part, weight, outer, table, groups[rows], slots[rows], dtype, to).sum()
        return
    inside = part
    if scale is not None and shift is not None:
        inside = torch.addcmul(shift.index_select(0, own), scale.index_select(0, own), part)
    products, logits = _product(inside, weight.T, dtype).to(total.dtype), table.index_select(0, own)
    if outer is None:
        logits += products
    else:
        factor = outer.index_select(0, own)
        logits.addcmul_(products, factor)
    value, error = _softmax(logits, slots[rows], counted)
    total += value
    if not keep:
        return
    d_table.index_add_(0, own, error.to(d_table.dtype))
    if outer is not None:
        d_outer.index_add_(0, own, products.mul_(error).to(d_outer.dtype))
        error.mul_(factor)
    _add_product(d_weight, error.T, inside, dtype)
    if scale is None:
        _add_product(d_states[rows], error, weight, dtype)
    else:
        d_inside = _product(error, weight, dtype).to(d_states.dtype)
        d_shift.index_add_(0, own, d_inside.to(d_shift.dtype))
        d_scale.index_add_(0, own, (d_inside * part).to(d_scale.dtype))
        d_states[rows].addcmul_(d_inside, scale.index_select(0, own))


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return left.to(dtype) @ right.to(dtype)


def _add_product(to: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    if to.dtype == dtype:
        to.addmm_(left.to(dtype), right.to(dtype))
    else:
        to += _product(left, right, dtype)


def _softmax(logits: Tensor, classes: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the summed cross entropy of the (n, 1) rows that count, and its gradient with respect to the logits."""
    target = classes.unsqueeze(1)
    nll, p = softmax_loss(logits, target, logits.dtype)
    p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand_as(target))
    if counted is None:
        return nll.sum(), p
    return nll.masked_fill_(~counted, 0).sum(), p.mul_(counted)


@_shared_nll.register_fake
def _shapes(
    states: Tensor,
    group_weight: Tensor,
    group_bias: Tensor,
    weight: Tensor,
    table: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    outer: Tensor | None,
    groups: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def gradient(tensor: Tensor | None) -> Tensor:
        return states.new_empty(0) if tensor is None or not keep else torch.empty_like(tensor)

    exact = exact_dtype(dtype)
    return (
        states.new_empty((), dtype=exact),
        states.new_empty((), dtype=exact),
        gradient(states),
        gradient(group_weight),
        gradient(group_bias),
        gradient(weight),
        gradient(table),
        gradient(scale),
        gradient(shift),
        gradient(outer),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.given = [tensor is not None for tensor in inputs[:8]]
    ctx.set_materialize_grads(False)  # no zeros for the outputs that nothing is derived from
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])


def _scale_gradients(ctx: Any, d_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    gradients = scale_saved(ctx.saved_tensors, d_total)
    return *(g if given else None for g, given in zip(gradients, ctx.given, strict=True)), *(None for _ in range(4))


_shared_nll.register_autograd(_scale_gradients, setup_context=_keep_gradients)
