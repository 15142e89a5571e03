"""The softmax inside each target's own group, over the tokens' own weight rows, all groups in one operator.

Under plain autograd a slice of the (V, D) table per group allocates a (V, D) gradient per group; here every group
writes its part of one. The slow line that it equals is `TwoLevelHead.token_logits` of `class_full`, which gathers
(N, S, D) rows. Its shapes follow from those of its inputs, so `torch.compile` and fake tensors pass through it.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group, K tokens outside the groups.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.grouping import group_members
from grouped_lm.heads.base import at_least_fp32
from grouped_lm.heads.in_group_device import backward_by_borders, forward_by_borders


class GroupRows(nn.Module):
    """Which rows of a (V, D) table belong to which group, and which to none.

    Args:
        token_to_group: (V,) int64, -1 for tokens outside the groups.
        token_to_slot: (V,) int64, the order within a group, and among the tokens outside.
        n_group: G.
        group_size: S, the largest group's.
        n_outside: K. That sizes are told, not counted, lets fake tensors through.
    """

    outside: Tensor
    """(K,) ids of the tokens in no group, by slot."""
    members: Tensor
    """(G, S) ids of every group, -1 where it has no more; S is rounded up to a multiple of 8, which the grouped matrix
    products of a GPU ask for."""

    def __init__(
        self, token_to_group: Tensor, token_to_slot: Tensor, n_group: int, group_size: int, n_outside: int = 0
    ) -> None:
        super().__init__()
        for name in ("outside", "members"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)
        self.n_group, self._width, self._n_outside = n_group, math.ceil(group_size / 8) * 8, n_outside
        self.assign(token_to_group, token_to_slot)

    def assign(self, token_to_group: Tensor, token_to_slot: Tensor) -> None:
        """Sort the ids by group and slot; needed again when the grouping was loaded."""
        self.members = group_members(token_to_group, token_to_slot, self.n_group, self._width)
        last = token_to_group.numel()
        self.outside = token_to_slot.masked_fill(token_to_group >= 0, last).argsort()[: self._n_outside]


@torch.library.custom_op("grouped_lm::in_group", mutates_args=())
def _in_group(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    members: Tensor,
    groups: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
    outside: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (N,) nats, (N,) hits, the rows of `outside`, and with `keep` (N, S) softmax errors sorted by group.

    Args:
        hidden, weight, bias, groups, slots: see `in_group_loss`.
        members: (G, S) ids, see `GroupRows`.
        dtype: of the matrix products.
        outside: (K,) tokens in no group whose rows are wanted.
        keep: whether a backward pass will follow.
    """
    if hidden.device.type != "cpu":
        nll, hits, errors = forward_by_borders(hidden, weight, bias, members, groups, slots, dtype)
        return nll, hits, weight.index_select(0, outside), errors if keep else errors[:0].clone()
    nll, hits, _, errors = _shapes(hidden, weight, bias, members, groups, slots, dtype, outside, keep)
    for output in (nll, hits, errors):
        output.zero_()
    place = torch.argsort(groups)
    states, slots = hidden[place].to(dtype), slots[place]
    for own, rows in _pieces(members, groups):
        target = slots[rows, None]
        table, shift = weight.index_select(0, own).to(dtype), bias.index_select(0, own).to(dtype)
        log_p = at_least_fp32(F.linear(states[rows], table, shift)).log_softmax(-1)
        nll[rows] = -log_p.gather(1, target).squeeze(1)
        hits[rows] = log_p.argmax(-1) == target.squeeze(1)
        if keep:
            error = log_p.exp_().scatter_add_(1, target, log_p.new_full((1, 1), -1.0).expand_as(target))
            errors[rows, : own.numel()] = error
    return _unsort(nll, place), _unsort(hits, place), weight.index_select(0, outside), errors


@_in_group.register_fake
def _shapes(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    members: Tensor,
    groups: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
    outside: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    count, width = groups.shape[0], members.shape[1]
    return (
        hidden.new_empty(count, dtype=exact),
        hidden.new_empty(count, dtype=torch.bool),
        weight.new_empty(outside.shape[0], weight.shape[1]),
        hidden.new_empty((count if keep else 0, width), dtype=exact),
    )


@torch.library.custom_op("grouped_lm::in_group_backward", mutates_args=())
def _in_group_backward(
    d_nll: Tensor,
    d_outside: Tensor,
    errors: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    members: Tensor,
    groups: Tensor,
    dtype: torch.dtype,
    outside: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `_in_group` with respect to hidden, weight and bias."""
    if hidden.device.type != "cpu":
        d_hidden, d_weight, d_bias = backward_by_borders(d_nll, errors, hidden, weight, members, groups, dtype)
        return d_hidden, d_weight.index_copy_(0, outside, d_outside), d_bias
    d_states, d_weight, d_bias = torch.zeros_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
    place = torch.argsort(groups)
    states, scale = hidden[place].to(dtype), d_nll[place].unsqueeze(1)
    for own, rows in _pieces(members, groups):
        d_logits = (errors[rows, : own.numel()] * scale[rows]).to(dtype)
        d_states[rows] = d_logits @ weight.index_select(0, own).to(dtype)
        d_weight.index_copy_(0, own, (d_logits.T @ states[rows]).to(weight.dtype))
        d_bias.index_copy_(0, own, d_logits.sum(0, dtype=bias.dtype))
    d_weight.index_copy_(0, outside, d_outside)
    return _unsort(d_states, place), d_weight, d_bias


@_in_group_backward.register_fake
def _backward_shapes(
    d_nll: Tensor,
    d_outside: Tensor,
    errors: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    members: Tensor,
    groups: Tensor,
    dtype: torch.dtype,
    outside: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight), torch.empty_like(bias)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, members, groups, _, ctx.dtype, outside, _ = inputs
    _, hits, _, errors = output
    ctx.mark_non_differentiable(hits, errors)
    ctx.save_for_backward(errors, hidden, weight, bias, members, groups, outside)


def _backward(ctx: Any, d_nll: Tensor, _hits: Tensor, d_outside: Tensor, _errors: Tensor) -> tuple[Tensor | None, ...]:
    errors, hidden, weight, bias, members, groups, outside = ctx.saved_tensors
    gradients = _in_group_backward(d_nll, d_outside, errors, hidden, weight, bias, members, groups, ctx.dtype, outside)
    return *gradients, *(None for _ in range(6))


_in_group.register_autograd(_backward, setup_context=_keep_for_backward)


def _unsort(values: Tensor, place: Tensor) -> Tensor:
    """Return the rows in the order from which `place` sorted them."""
    return torch.empty_like(values).index_copy_(0, place, values)


def _pieces(members: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Yield the ids of each group that has rows and its slice of the rows sorted by group."""
    sizes = (members >= 0).sum(1).tolist()
    stop, *counts = torch.bincount(groups + 1, minlength=len(sizes) + 1).tolist()
    for group, count in enumerate(counts):
        start, stop = stop, stop + count
        if count:
            yield members[group, : sizes[group]], slice(start, stop)


def in_group_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, rows: GroupRows, groups: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -log p(token | its group) per row, which rows have the likeliest token, and the rows of other tokens.

    logits = W[ids of the group] h + bias[ids of the group]. Between forward and backward it holds N S numbers.

    Args:
        hidden: (N, D).
        weight: (V, D), a row per token.
        bias: (V,).
        rows: which of them belong to which group.
        groups: (N,) int64 in [0, G), or -1 for rows that have no part in this.
        slots: (N,) int64, the target's place in its group.

    Returns:
        (N,) nats in fp32 or finer, zero where the group is -1; (N,) bool; (K, D), the rows of the tokens outside the
        groups, picked here so that their gradient goes to the same (V, D) buffer.
    """
    kind, keep = hidden.device.type, torch.is_grad_enabled()
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    nll, hits, outside, _ = _in_group(hidden, weight, bias, rows.members, groups, slots, dtype, rows.outside, keep)
    return nll, hits, outside
