"""The softmax inside each target's own group, over the tokens' own weight rows, all groups in one operator.

Under plain autograd every group would allocate a (V, D) gradient. Here every group writes its part of one. The slow
line that it equals is `ClassFullHead.token_logits`, which gathers (N, S, D) rows. The shapes of its outputs follow from
those of its inputs, so `torch.compile` and fake tensors can pass through it.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group, K tokens outside the groups.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_lm.heads.losses.functional import at_least_fp32, exact_dtype, working_dtype
from grouped_lm.heads.losses.kernels import DTYPES, chosen

PIECE_ROWS = 128, 256
"""Limits of the rows that a CPU takes at once, which are a sixteenth of all rows."""


Inputs = tuple[Tensor, Tensor, Tensor]
"""`hidden`, `weight` and `bias` of `in_group_loss`, or their gradients."""
Places = tuple[Tensor, Tensor, Tensor]
"""The (G, S) ids of every group, as `GroupedTokens.padded_members` has them; the groups of the targets, (N,) int64 in
[0, G), or -1 for rows that do not count; and their slots, (N,) int64 in [0, S)."""


def in_group_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, places: Places, picked: Tensor, accuracy: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -log p(token | its group) per row, the rows whose token is the likeliest, and the rows of other tokens.

    logits = W[ids of the group] h + bias[ids of the group]. The backward pass computes them again, so nothing is kept.

    Returns:
        (N,) nats in fp32 or finer, zero where the group is -1; (N,) bool, (0,) without `accuracy`; (P, D), the rows of
        the (P,) ids `picked`. They are taken here so that their gradient goes into the same (V, D) buffer.
    """
    nll, hits, rows = _in_group(hidden, weight, bias, *places, picked, working_dtype(hidden), accuracy)
    return nll, hits, rows


GIVEN = (
    "Tensor hidden, Tensor weight, Tensor bias, Tensor members, Tensor groups, Tensor slots, Tensor picked, "
    "ScalarType dtype"
)
"""Arguments of both operators. A list of tensors would cost 0.1 ms a call."""


@torch.library.custom_op(
    "grouped_lm::in_group", mutates_args=(), schema=f"({GIVEN}, bool accuracy) -> (Tensor, Tensor, Tensor)"
)
def _in_group(hidden: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `in_group_loss`; matrix products are in `dtype`."""
    members, groups, slots, picked, dtype, accuracy = rest
    inputs, places = (hidden, weight, bias), (members, groups, slots)
    rows = weight.index_select(0, picked)
    if (on_device := _device_passes(hidden, members, dtype)) is not None:
        nll, hits = on_device[0](inputs, (members.long(), groups, slots), dtype)
        return nll, hits if accuracy else hits[:0].clone(), rows
    nll = hidden.new_zeros(groups.shape[0], dtype=exact_dtype(dtype))
    hits = hidden.new_zeros(groups.shape[0] if accuracy else 0, dtype=torch.bool)
    forward_by_pieces(inputs, places, dtype, nll, hits if accuracy else None)
    return nll, hits, rows


@_in_group.register_fake
def _shapes(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, groups, _, picked, dtype, accuracy = rest
    nll = hidden.new_empty(groups.shape[0], dtype=exact_dtype(dtype))
    hits = hidden.new_empty(groups.shape[0] if accuracy else 0, dtype=torch.bool)
    return nll, hits, weight.new_empty(picked.shape[0], weight.shape[1])


def forward_by_pieces(inputs: Inputs, places: Places, dtype: torch.dtype, nll: Tensor, hits: Tensor | None) -> None:
    """Write the (N,) losses and hits of the rows that have a group, group after group; products are in `dtype`."""
    hidden, weight, bias = inputs
    for own, rows, target, other in _pieces(*places):
        log_p = _log_softmax(hidden[rows], weight.index_select(0, own), bias.index_select(0, own), other, dtype)
        nll[rows] = -log_p.gather(1, target).squeeze(1)
        if hits is not None:
            hits[rows] = log_p.argmax(-1) == target.squeeze(1)


def _log_softmax(states: Tensor, table: Tensor, shift: Tensor, other: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = at_least_fp32(F.linear(states.to(dtype), table.to(dtype), shift.to(dtype)))
    return (logits if other is None else logits.masked_fill_(other, -torch.inf)).log_softmax(-1)


@torch.library.custom_op(
    "grouped_lm::in_group_backward",
    mutates_args=(),
    schema=f"(Tensor d_nll, Tensor? d_picked, {GIVEN}) -> (Tensor, Tensor, Tensor)",
)
def _in_group_backward(d_nll: Tensor, d_picked: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `_in_group` with respect to hidden, weight and bias; logits are computed again."""
    hidden, weight, bias, members, groups, slots, picked, dtype = rest
    inputs = hidden, weight, bias
    if (on_device := _device_passes(hidden, members, dtype)) is not None:
        gradients = on_device[1](d_nll, inputs, (members.long(), groups, slots), dtype)
    else:
        of_weights = (torch.zeros_like(t, dtype=exact_dtype(t.dtype)) for t in (weight, bias))  # sums over pieces
        gradients = torch.zeros_like(hidden), *of_weights
        backward_by_pieces(d_nll, inputs, (members, groups, slots), dtype, gradients)
    d_hidden, d_weight, d_bias = gradients
    if d_picked is not None:
        d_weight.index_add_(0, picked, d_picked.to(d_weight.dtype))
    return d_hidden, d_weight.to(weight.dtype), d_bias.to(bias.dtype)


@_in_group_backward.register_fake
def _backward_shapes(_d_nll: Tensor, _d_picked: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rest[0]), torch.empty_like(rest[1]), torch.empty_like(rest[2])


def backward_by_pieces(d_nll: Tensor, inputs: Inputs, places: Places, dtype: torch.dtype, to: Inputs) -> None:
    """Add the gradients of the inputs to `to`, group after group; (N,) `d_nll` are the gradients of the losses."""
    hidden, weight, bias = inputs
    d_hidden, d_weight, d_bias = to
    for own, rows, target, other in _pieces(*places):
        states, table = hidden[rows], weight.index_select(0, own)
        error = _log_softmax(states, table, bias.index_select(0, own), other, dtype).exp_()
        error.scatter_add_(1, target, error.new_full((1, 1), -1.0).expand_as(target)).mul_(d_nll[rows, None])
        d_bias.index_add_(0, own, error.sum(0).to(d_bias.dtype))
        error = error.to(dtype)
        d_hidden.index_add_(0, rows, (error @ table.to(dtype)).to(d_hidden.dtype))
        del table
        d_weight.index_add_(0, own, (error.T @ states.to(dtype)).to(d_weight.dtype))
        del states, error  # else they would live while the next are made


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dtype, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_nll: Tensor | None, _hits: None, d_picked: Tensor | None) -> tuple[Any, ...]:
    hidden, _, _, _, groups, *_ = tensors = ctx.saved_tensors
    if d_nll is None:
        d_nll = hidden.new_zeros(groups.shape, dtype=exact_dtype(ctx.dtype))
    return *_in_group_backward(d_nll, d_picked, *tensors, ctx.dtype), *[None] * 6


_in_group.register_autograd(_backward, setup_context=_keep_for_backward)


def _device_passes(hidden: Tensor, members: Tensor, dtype: torch.dtype) -> tuple[Callable[..., Any], ...] | None:
    """Return the forward and the backward pass that read the borders of groups on the device.

    None means the loops of this module, on a CPU and for fp64. On a GPU the loops wait for the device at every group.
    """
    if chosen(hidden.device, dtype, members.shape[0]) and hidden.dtype in DTYPES:
        from grouped_lm.heads.losses.kernels import groups

        return groups.forward, groups.backward
    loops = hidden.device.type == "cpu" or dtype is torch.float64
    return None if loops else (forward_by_borders, backward_by_borders)


def _pieces(members: Tensor, groups: Tensor, slots: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield the groups that have rows, several small groups at once, and large ones in several pieces.

    Yields:
        (c,) ids of the groups' tokens; (n,) rows; (n, 1) places of the rows' targets among the ids; (n, c) true at
        tokens of other groups than the row's own, None for a single group.
    """
    sizes = [size for some in members.split(32) for size in (some >= 0).sum(1).tolist()]  # a sum is of an int64 copy
    order = torch.argsort(groups)
    stop, *counts = torch.bincount(groups + 1, minlength=len(sizes) + 1).tolist()
    n_rows = min(max(len(groups) // 16, PIECE_ROWS[0]), PIECE_ROWS[1])
    for some in _neighbours(sizes, counts, members.shape[1], n_rows):
        own = torch.cat([members[group, : sizes[group]] for group in some])
        start, stop = stop, stop + sum(counts[group] for group in some)
        for rows in order[start:stop].split(n_rows):
            target, other = slots[rows], None
            if len(some) > 1:
                width = torch.tensor([sizes[group] for group in some], device=groups.device)
                which = torch.bucketize(groups[rows], torch.tensor(some, device=groups.device))
                target = target + (width.cumsum(0) - width)[which]
                other = which.unsqueeze(1) != torch.arange(len(some), device=groups.device).repeat_interleave(width)
            yield own, rows, target.unsqueeze(1), other


def _neighbours(sizes: list[int], counts: list[int], most: int, n_rows: int) -> Iterator[list[int]]:
    """Yield the groups that have rows, in order, as many at once as have `most` tokens and `n_rows` rows together.

    A call of torch costs as much time as some hundred more columns of a product.
    """
    some: list[int] = []
    tokens = rows = 0
    for group, count in enumerate(counts):
        if not count:
            continue
        if some and (tokens + sizes[group] > most or rows + count > n_rows):
            yield some
            some, tokens, rows = [], 0, 0
        some.append(group)
        tokens, rows = tokens + sizes[group], rows + count
    if some:
        yield some


# The same passes as grouped matrix products. The device reads the borders of groups, so the host never waits. On a CPU
# the loops above are faster. `F.grouped_mm` takes fp32, bf16 and fp16, and rows of a multiple of 16 bytes.


def sort_by_group(groups: Tensor, n_group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort (N,) rows by their groups, in [0, G) or -1.

    Returns:
        (N,) int64 order, rows of no group last; in that order (N,) groups in [0, G) and (N,) whether a row has one; and
        (G,) int32 ends of the groups.
    """
    key = torch.where(groups < 0, n_group, groups)
    place = torch.argsort(key)
    key = key[place]
    ends = torch.searchsorted(key, torch.arange(n_group, device=key.device), right=True).to(torch.int32)
    return place, key.clamp_max(n_group - 1), key < n_group, ends


def group_tables(weight: Tensor, members: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the (G, S, D) rows of every group's tokens, any row at padding slots."""
    rows = weight.index_select(0, members.clamp_min(0).flatten())
    return rows.unflatten(0, members.shape).to(dtype)


def forward_by_borders(inputs: Inputs, places: Places, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the (N,) nats and (N,) hits of `in_group_loss`."""
    (hidden, weight, bias), (members, groups, slots) = inputs, places
    place, *borders = sort_by_group(groups, members.shape[0])
    counted = borders[1]
    target = slots[place].masked_fill(~counted, 0).unsqueeze(1)
    log_p = log_softmax_by_borders(hidden[place], weight, bias, members, borders, dtype)
    nll = -log_p.gather(1, target).squeeze(1) * counted
    hits = (log_p.argmax(-1) == target.squeeze(1)) & counted
    nll, hits = (torch.empty_like(values).index_copy_(0, place, values) for values in (nll, hits))
    return nll, hits


def log_softmax_by_borders(
    states: Tensor, weight: Tensor, bias: Tensor, members: Tensor, borders: list[Tensor], dtype: torch.dtype
) -> Tensor:
    """Return (N, S) log-probabilities of (N, D) states sorted by group, `borders` being the rest of `sort_by_group`."""
    own, counted, ends = borders
    tables = group_tables(weight, members, dtype)
    logits = at_least_fp32(F.grouped_mm(states.to(dtype), tables.transpose(1, 2), offs=ends))
    shift = bias[members.clamp_min(0)].masked_fill(members < 0, -torch.inf)
    return torch.where(counted[:, None], logits + shift[own], 0.0).log_softmax(-1)  # rows past the last end are noise


def backward_by_borders(d_nll: Tensor, inputs: Inputs, places: Places, dtype: torch.dtype) -> Inputs:
    """Return the (N, D), (V, D) and (V,) gradients with respect to hidden, weight and bias."""
    (hidden, weight, bias), (members, groups, slots) = inputs, places
    place, *borders = sort_by_group(groups, members.shape[0])
    own, counted, ends = borders
    target = slots[place].masked_fill(~counted, 0).unsqueeze(1)
    exact = log_softmax_by_borders(hidden[place], weight, bias, members, borders, dtype).exp_()
    exact.scatter_add_(1, target, exact.new_full((1, 1), -1.0).expand_as(target))
    exact.mul_((d_nll[place] * counted).unsqueeze(1))
    d_logits = exact.to(dtype)
    d_states = F.grouped_mm(d_logits, group_tables(weight, members, dtype), offs=ends).to(hidden.dtype)
    d_states = torch.where(counted[:, None], d_states, 0.0)
    d_tables = F.grouped_mm(d_logits.T, hidden[place].to(dtype), offs=ends)
    ids = members.clamp_min(0).flatten()  # padding slots add zeros to token 0
    d_weight = torch.zeros_like(weight).index_add_(0, ids, d_tables.flatten(0, 1).to(weight.dtype))
    d_shift = torch.zeros_like(members, dtype=exact.dtype).index_add_(0, own, exact)
    d_bias = weight.new_zeros(weight.shape[0]).index_add_(0, ids, d_shift.flatten().to(weight.dtype))
    return torch.empty_like(hidden).index_copy_(0, place, d_states), d_weight, d_bias
