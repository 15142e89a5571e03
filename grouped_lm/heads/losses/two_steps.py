"""Both steps of a head in one node of the graph: a softmax over classes, then one over the tokens of a group.

It equals two operators, `class_nll` and `in_group_loss`. Those have a gradient of the states each, and a backward pass
holds both. Here the second is added to the first.

Letters: N tokens, D width, V vocabulary, C columns of logits, R columns of one class, G groups, S slots per group.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS, add_chunk
from grouped_lm.heads.losses.functional import exact_dtype, working_dtype
from grouped_lm.heads.losses.in_group import Places, backward_by_pieces, forward_by_pieces
from grouped_lm.heads.losses.saved_gradients import scaled


@dataclass(frozen=True, slots=True)
class TwoStepTargets:
    """The places of N targets in both steps."""

    classes: Tensor
    """(N,) int64 in the first softmax, -1 where ignored."""
    layout: tuple[int, int]
    """`n_single` and `directions` of `class_nll`."""
    places: Places
    """Members of the groups, groups and slots, as for `in_group_loss`."""


def two_steps_nll(
    states: Tensor, first: tuple[Tensor, Tensor], table: tuple[Tensor, Tensor], targets: TwoStepTargets
) -> tuple[Tensor, Tensor]:
    """Return the summed -log p(class) - log p(token | group), and the first part of it, which has no gradient.

    It may be used where `at_once` holds.

    Args:
        states: (N, D).
        first: (C, D) and (C,), the weights and biases of the first softmax.
        table: (V, D) and (V,), the rows and biases of the second.
        targets: the places of the targets.
    """
    total, first_part = _TwoSteps.apply(states, *first, *table, targets, torch.is_grad_enabled())
    return total, first_part


def pick_rows(weight: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P, D) rows of a (V, D) table, and the table for `two_steps_nll`, whose gradient includes theirs."""
    rows, table = _PickRows.apply(weight, picked)
    return rows, table


class _PickRows(torch.autograd.Function):
    """The operator of `pick_rows`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(picked)
        return weight.index_select(0, picked), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor, d_weight: Tensor) -> tuple[Tensor, None]:
        (picked,) = ctx.saved_tensors
        return d_weight.index_add_(0, picked, d_rows), None  # nobody else holds d_weight


class _TwoSteps(torch.autograd.Function):
    """The operator of `two_steps_nll`."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        class_weight: Tensor,
        class_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: TwoStepTargets,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = working_dtype(states)
        total = states.new_zeros((), dtype=exact_dtype(dtype))
        gradients = tuple(t.new_zeros(t.shape if keep else 0) for t in (states, class_weight, class_bias))
        d_states, d_class_weight, d_class_bias = gradients
        outputs = total, d_states, d_class_weight, d_class_bias
        narrow = class_weight.to(dtype), class_bias.to(dtype)
        for start in range(0, states.shape[0], DEFAULT_CHUNK_ROWS):
            rows = slice(start, start + DEFAULT_CHUNK_ROWS)
            add_chunk(rows, states, *narrow, targets.classes, targets.layout, outputs)
        first = total.clone()
        nll = states.new_zeros(states.shape[0], dtype=total.dtype)
        forward_by_pieces((states, weight, bias), targets.places, dtype, nll, None)
        total += nll.sum()
        ctx.dtype = dtype
        ctx.set_materialize_grads(False)  # no zeros for the output without a gradient
        ctx.mark_non_differentiable(first)
        ctx.save_for_backward(states, weight, bias, *targets.places, *gradients)
        return total, first

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_total is None:
            return (None,) * 7
        states, weight, bias, *places, d_states, d_class_weight, d_class_bias = ctx.saved_tensors
        d_states, d_class_weight, d_class_bias = scaled((d_states, d_class_weight, d_class_bias), d_total)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        d_nll = d_total.expand(len(d_states))
        backward_by_pieces(d_nll, (states, weight, bias), places, ctx.dtype, (d_states, d_weight, d_bias))
        return d_states, d_class_weight, d_class_bias, d_weight, d_bias, None, None
