"""The summed loss of two steps whose second is one layer that all groups share, a chunk of rows at a time.

The gradients are computed with the loss. So no (N, G) or (N, S) tensor outlives its chunk, and the states have one
gradient. The slow lines that it equals are `TwoLevelHead.loss` with `SharedLayerHead.token_logits`.

Letters: N tokens, D width, G groups, S slots per group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from grouped_lm.heads.losses.chunked import chunks, default_chunk_rows, softmax_loss
from grouped_lm.heads.losses.functional import empty_gradients, exact_dtype, register_saved_gradients, working_dtype
from grouped_lm.heads.losses.kernels import DTYPES, MAX_SLOTS, chosen

if TYPE_CHECKING:
    from grouped_lm.heads.losses.kernels.route import Route


@dataclass(frozen=True, slots=True)
class SharedLayer:
    """Token logits in group g: outer[g] * (W (scale[g] * h + shift[g])) + table[g]. None parts are left out."""

    weight: Tensor  # W, (S, D)
    table: Tensor  # (G, S), -inf at padding slots
    inner: tuple[Tensor, Tensor] | None = None  # scale and shift, (G, D) each
    outer: Tensor | None = None  # (G, S)


@dataclass(frozen=True, slots=True)
class _Weights:
    """All weights of both steps, or their gradients; a part that is left out has no elements."""

    group_weight: Tensor
    group_bias: Tensor
    weight: Tensor
    table: Tensor
    scale: Tensor
    shift: Tensor
    outer: Tensor


def shared_nll(
    states: Tensor, group_weight: Tensor, group_bias: Tensor, layer: SharedLayer, groups: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the summed -log p(token), and the part of it that is -log p(group), which has no gradient.

    Under autocast the matrix products are in its type, the softmax and all sums over chunks in fp32. The (N,) groups
    are in [0, G), or -1 for rows that count nowhere; the (N,) slots are in [0, S).
    """
    none = states.new_empty(0)
    inner, outer = layer.inner or (none, none), none if layer.outer is None else layer.outer
    weights = group_weight, group_bias, layer.weight, layer.table, *inner, outer
    given = states, *weights, groups, slots, working_dtype(states), torch.is_grad_enabled()
    if not torch.compiler.is_compiling() and is_fake(states):  # a memory tracker sees the inside of one chunk
        with torch.no_grad():
            _sums(*given)
    total, group_total, *_ = _shared_nll(*given)
    return total, group_total


def _sums(states: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Return the sums of both steps and of the first, and with `keep` the gradients of states and weights."""
    *weights, groups, slots, dtype, _keep = rest
    outputs = _shapes(states, *rest)
    for output in outputs:
        output.zero_()
    whole = states.device.type == "cpu" and not is_fake(groups) and bool((groups >= 0).all())
    for rows in chunks(states, default_chunk_rows(states.device)):
        _add_chunk(rows, states, weights, groups, slots, dtype, outputs, whole)
    return outputs


_shared_nll = torch.library.custom_op(
    "grouped_lm::shared_nll",
    _sums,
    mutates_args=(),
    schema="(Tensor states, Tensor group_weight, Tensor group_bias, Tensor weight, Tensor table, Tensor scale, "
    "Tensor shift, Tensor outer, Tensor groups, Tensor slots, ScalarType dtype, bool keep) -> "
    f"({', '.join(['Tensor'] * 10)})",  # a list of tensors would cost 0.1 ms a call
)


@_shared_nll.register_fake
def _shapes(states: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *weights, _, _, dtype, keep = rest
    sums = [states.new_empty((), dtype=exact_dtype(dtype)) for _ in range(2)]
    return *sums, *empty_gradients(keep, states, *weights)


register_saved_gradients(_shared_nll, n_values=2, n_gradients=8)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of the states and their targets."""

    states: Tensor  # (n, D)
    groups: Tensor  # (n,) in [0, G), any where ignored
    slots: Tensor  # (n,)
    counted: Tensor | None  # (n, 1) bool, None if all count
    dtype: torch.dtype  # of the products
    way: "Route | None"  # the rows sorted by group, where kernels run


def _add_chunk(
    rows: slice,
    states: Tensor,
    weights: Sequence[Tensor],
    groups: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
    outputs: Sequence[Tensor],
    whole: bool,
) -> None:
    """Add the losses of some rows, and their gradients if those are kept; `whole` if all of the rows count."""
    total, group_total, d_states = outputs[:3]
    w, d, n_group = _Weights(*weights), _Weights(*outputs[3:]), weights[1].shape[0]
    to = (d_states[rows], d) if d_states.shape == states.shape else None
    way = None
    if len(states) and states.dtype in DTYPES and chosen(states.device, dtype, n_group):
        way = _kernels().route_groups(groups[rows], n_group)
    counted = None if whole else (groups[rows] >= 0).unsqueeze(1)
    part = _Rows(states[rows], groups[rows].clamp_min(0), slots[rows], counted, dtype, way)
    value = _group_loss(part, w, to)
    total += value
    group_total += value
    total += _slot_loss(part, w, to)


def _kernels() -> Any:
    from grouped_lm.heads.losses.kernels import shared  # imports triton

    return shared


def _group_loss(rows: _Rows, w: _Weights, to: tuple[Tensor, _Weights] | None) -> Tensor:
    """Return the summed loss of the first step, and write its gradient of the states and add the others."""
    states, dtype, exact = rows.states, rows.dtype, exact_dtype(rows.dtype)
    if rows.way is not None:
        gradients = None if to is None else (to[0], to[1].group_weight, to[1].group_bias)
        value: Tensor = _kernels().group_loss(states, w.group_weight.to(dtype), w.group_bias, rows.way, gradients)
        return value
    if dtype == exact:
        logits = torch.addmm(w.group_bias, states, w.group_weight.T)
    else:
        logits = _product(states, w.group_weight.T, dtype).to(exact).add_(w.group_bias)
    value, error = _softmax(logits, rows.groups, rows.counted)
    if to is not None:
        d_states, d = to
        d.group_bias.add_(error.sum(0))
        _add_product(d_states, error, w.group_weight, dtype)
        _add_product(d.group_weight, error.T, states, dtype)
    return value


def _slot_loss(rows: _Rows, w: _Weights, to: tuple[Tensor, _Weights] | None) -> Tensor:
    """Return the summed loss of the second step, and add its gradients to `to`."""
    states, groups, dtype, exact = rows.states, rows.groups, rows.dtype, exact_dtype(rows.dtype)
    film, scaled = w.scale.numel() > 0, w.outer.numel() > 0
    inside, factor = states, w.outer
    if film:
        inside = torch.addcmul(w.shift.index_select(0, groups), w.scale.index_select(0, groups), states)
    if scaled and not film and rows.way is not None and w.table.shape[1] <= MAX_SLOTS:
        found = _kernels().slot_losses(
            states, w.weight.to(dtype), w.outer, w.table, rows.way, rows.slots, to is not None
        )
        value, error, products, d_products = found
    else:
        products, logits = _product(inside, w.weight.T, dtype).to(exact), w.table.index_select(0, groups)
        if scaled:
            factor = w.outer.index_select(0, groups)
            logits.addcmul_(products, factor)
        else:
            logits += products
        value, error = _softmax(logits, rows.slots, rows.counted)
        d_products = error
    if to is None:
        return value
    d_states, d = to
    if scaled:
        _add_by_group(rows, error, products, d.table, d.outer)
        d_products = error.mul_(factor) if d_products is error else d_products
    else:
        _add_by_group(rows, error, None, d.table, None)
    _add_product(d.weight, d_products.T, inside, dtype)
    if film:
        d_inside = _product(d_products, w.weight, dtype).to(d_states.dtype)
        _add_by_group(rows, d_inside, states, d.shift, d.scale)
        d_states.addcmul_(d_inside, w.scale.index_select(0, groups))
    else:
        _add_product(d_states, d_products, w.weight, dtype)
    return value


def _add_by_group(rows: _Rows, values: Tensor, factors: Tensor | None, to: Tensor, products: Tensor | None) -> None:
    """Add the (n, X) values of each group's rows to its row of `to`, and values times factors to that of `products`.

    A GPU would do it by atomic additions, whose order differs from run to run.
    """
    if rows.way is not None:
        _kernels().add_by_group(values, factors, rows.way, to, products)
        return
    to.index_add_(0, rows.groups, values.to(to.dtype))
    if factors is not None and products is not None:
        more = values * factors if factors is rows.states else factors.mul_(values)
        products.index_add_(0, rows.groups, more.to(products.dtype))


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
