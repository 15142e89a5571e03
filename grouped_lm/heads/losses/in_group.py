"""The softmax inside each target's own group, over the tokens' own weight rows, all groups in one operator.

Under plain autograd every group would allocate a (V, D) gradient. Here every group writes its part of one. The slow
line that it equals is `ClassFullHead.token_logits`, which gathers (N, S, D) rows. The shapes of its outputs follow from
those of its inputs, so `torch.compile` and fake tensors can pass through it.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group, K tokens outside the groups.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.grouping import group_members
from grouped_lm.heads.losses.functional import at_least_fp32, exact_dtype, working_dtype
from grouped_lm.heads.losses.in_group_device import backward_by_borders, forward_by_borders
from grouped_lm.heads.losses.kernels import chosen

PIECE_ROWS = 128, 256
"""Limits of the rows that a CPU takes at once, which are a sixteenth of all rows."""


class GroupRows(nn.Module):
    """The rows of a (V, D) table that belong to each group, and those that belong to none.

    Args:
        token_to_group: (V,) int32 or int64, -1 for tokens outside the groups.
        token_to_slot: (V,) of the same, the order within a group, and among the tokens outside.
        n_group: G.
        group_size: S, the largest group's.
        n_outside: K. Sizes are arguments, since fake tensors cannot be counted.
    """

    outside: Tensor
    """(K,) ids of the tokens in no group, by slot."""
    _members: Tensor | None

    def __init__(
        self, token_to_group: Tensor, token_to_slot: Tensor, n_group: int, group_size: int, n_outside: int = 0
    ) -> None:
        super().__init__()
        for name in ("outside", "_members"):
            self.register_buffer(name, None, persistent=False)
        self.n_group, self._width, self._n_outside = n_group, math.ceil(group_size / 8) * 8, n_outside
        self.assign(token_to_group, token_to_slot)

    def assign(self, token_to_group: Tensor, token_to_slot: Tensor) -> None:
        """Sort the ids by group and slot; also needed after the groups were loaded."""
        self._members = None
        last = token_to_group.numel()
        self.outside = token_to_slot.masked_fill(token_to_group >= 0, last).argsort()[: self._n_outside]

    @torch.inference_mode(False)  # computed once, also for training
    def members(self, token_to_group: Tensor, token_to_slot: Tensor) -> Tensor:
        """Return the (G, S) int32 ids of every group, -1 where it has no more. They are computed once per `assign`.

        S is rounded up to a multiple of 8, since the grouped matrix products of a GPU need that.

        Args:
            token_to_group: as assigned.
            token_to_slot: as assigned.
        """
        if self._members is None:
            self._members = group_members(token_to_group, token_to_slot, self.n_group, self._width).int()
        return self._members


Places = tuple[Tensor, Tensor, Tensor]
"""The (G, S) ids of every group (`GroupRows.members`); the groups of the targets, (N,) int64 in [0, G), or -1 for rows
that do not count; and their slots, (N,) int64 in [0, S)."""


def in_group_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, places: Places, picked: Tensor, accuracy: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -log p(token | its group) per row, the rows whose token is the likeliest, and the rows of other tokens.

    logits = W[ids of the group] h + bias[ids of the group]. The backward pass computes them again, so nothing is kept.

    Args:
        hidden: (N, D).
        weight: (V, D), a row per token.
        bias: (V,).
        places: members of the groups, groups and slots of the targets.
        picked: (P,) ids of further tokens whose rows the caller needs.
        accuracy: also compare with the likeliest token.

    Returns:
        (N,) nats in fp32 or finer, zero where the group is -1; (N,) bool, (0,) without `accuracy`; (P, D), the rows of
        `picked`. They are taken here so that their gradient goes into the same (V, D) buffer.
    """
    nll, hits, rows = _in_group(hidden, weight, bias, list(places), picked, working_dtype(hidden), accuracy)
    return nll, hits, rows


@torch.library.custom_op("grouped_lm::in_group", mutates_args=())
def _in_group(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    places: Sequence[Tensor],
    picked: Tensor,
    dtype: torch.dtype,
    accuracy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `in_group_loss`; matrix products are in `dtype`."""
    members, groups, slots = places
    picked_rows = weight.index_select(0, picked)
    if (on_device := _device_passes(hidden, members, dtype)) is not None:
        nll, hits = on_device[0](hidden, weight, bias, members.long(), groups, slots, dtype)
        return nll, hits if accuracy else hits[:0].clone(), picked_rows
    nll, hits, _ = _shapes(hidden, weight, bias, places, picked, dtype, accuracy)
    nll.zero_()
    hits.zero_()
    forward_by_pieces((hidden, weight, bias), places, dtype, nll, hits if accuracy else None)
    return nll, hits, picked_rows


@_in_group.register_fake
def _shapes(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    places: Sequence[Tensor],
    picked: Tensor,
    dtype: torch.dtype,
    accuracy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    count = places[1].shape[0]
    return (
        hidden.new_empty(count, dtype=exact_dtype(dtype)),
        hidden.new_empty(count if accuracy else 0, dtype=torch.bool),
        weight.new_empty(picked.shape[0], weight.shape[1]),
    )


def forward_by_pieces(
    inputs: tuple[Tensor, Tensor, Tensor],
    places: Sequence[Tensor],
    dtype: torch.dtype,
    nll: Tensor,
    hits: Tensor | None,
) -> None:
    """Write the losses and the hits of the rows that have a group, group after group.

    Args:
        inputs: hidden, weight and bias of `in_group_loss`.
        places: members, groups and slots.
        dtype: of the matrix products.
        nll: (N,) losses, written.
        hits: (N,) hits, written; None to skip them.
    """
    hidden, weight, bias = inputs
    for own, rows, target, other in _pieces(*places):
        log_p = _log_softmax(hidden[rows], weight.index_select(0, own), bias.index_select(0, own), other, dtype)
        nll[rows] = -log_p.gather(1, target).squeeze(1)
        if hits is not None:
            hits[rows] = log_p.argmax(-1) == target.squeeze(1)


def _log_softmax(states: Tensor, table: Tensor, shift: Tensor, other: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = at_least_fp32(F.linear(states.to(dtype), table.to(dtype), shift.to(dtype)))
    return (logits if other is None else logits.masked_fill_(other, -torch.inf)).log_softmax(-1)


@torch.library.custom_op("grouped_lm::in_group_backward", mutates_args=())
def _in_group_backward(
    d_nll: Tensor,
    d_picked: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    places: Sequence[Tensor],
    picked: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `_in_group` with respect to hidden, weight and bias; logits are computed again."""
    members, groups, slots = places
    if (on_device := _device_passes(hidden, members, dtype)) is not None:
        gradients = on_device[1](d_nll, hidden, weight, bias, members.long(), groups, slots, dtype)
    else:
        gradients = torch.zeros_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        backward_by_pieces(d_nll, (hidden, weight, bias), places, dtype, gradients)
    if d_picked is not None:
        gradients[1].index_add_(0, picked, d_picked)
    d_hidden, d_weight, d_bias = gradients
    return d_hidden, d_weight, d_bias


@_in_group_backward.register_fake
def _backward_shapes(
    d_nll: Tensor,
    d_picked: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    places: Sequence[Tensor],
    picked: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight), torch.empty_like(bias)


def backward_by_pieces(
    d_nll: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    places: Sequence[Tensor],
    dtype: torch.dtype,
    to: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Add the gradients of the losses inside groups, group after group.

    Args:
        d_nll: (N,) gradient of each loss.
        inputs: hidden, weight and bias of `in_group_loss`.
        places: members, groups and slots.
        dtype: of the matrix products.
        to: gradients of hidden (N, D), weight (V, D) and bias (V,); added to.
    """
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
    hidden, weight, bias, places, picked, ctx.dtype, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(hidden, weight, bias, *places, picked)


def _backward(ctx: Any, d_nll: Tensor | None, _hits: None, d_picked: Tensor | None) -> tuple[Any, ...]:
    hidden, weight, bias, *places, picked = ctx.saved_tensors
    if d_nll is None:
        d_nll = hidden.new_zeros(places[1].shape, dtype=exact_dtype(ctx.dtype))
    gradients = _in_group_backward(d_nll, d_picked, hidden, weight, bias, places, picked, ctx.dtype)
    return *gradients, [None] * 3, None, None, None


_in_group.register_autograd(_backward, setup_context=_keep_for_backward)


def _device_passes(hidden: Tensor, members: Tensor, dtype: torch.dtype) -> tuple[Callable[..., Any], ...] | None:
    """Return the forward and the backward pass that read the borders of groups on the device.

    None means the loops of this module, on a CPU and for fp64. On a GPU the loops wait for the device at every group.
    """
    if chosen(hidden.device, dtype, members.shape[1], repeats=True):
        from grouped_lm.heads.losses.kernels import own_rows

        return own_rows.forward, own_rows.backward
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
