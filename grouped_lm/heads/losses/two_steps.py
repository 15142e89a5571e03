"""Both steps of a head in one node of the graph: a softmax over columns, then one inside groups of a table's rows.

As two operators, `class_nll` and `in_group_loss`, which are the slow line that this equals, each brings a gradient of
the states, and a backward pass holds both. Here the second is added to the first.

Letters: N tokens, D width, V vocabulary, C columns of logits, R columns of one class, G groups, S slots per group.
"""

from typing import Any

import torch
from torch import Tensor

from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS, add_chunk, exact_dtype, scaled, working_dtype
from grouped_lm.heads.losses.in_group import backward_by_pieces, forward_by_pieces


def two_steps_nll(
    states: Tensor,
    columns: tuple[Tensor, Tensor],
    classes: Tensor,
    layout: tuple[int, int],
    table: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the summed -log p(class) - log p(token | group), and the first part of it, which carries no gradient.

    Where `at_once` alone.

    Args:
        states: (N, D).
        columns: (C, D) and (C,), the weights and biases of the first softmax.
        classes: (N,) int64, -1 where ignored.
        layout: `n_single` and `directions` of `class_nll`.
        table: (V, D) and (V,), the rows and biases of the second.
        places: members (G, S), groups (N,) and slots (N,) of `in_group_loss`.
    """
    found: tuple[Tensor, Tensor] = _TwoSteps.apply(
        states, *columns, *table, classes, layout, places, torch.is_grad_enabled()
    )
    return found


def pick_rows(weight: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P, D) rows of a (V, D) table, and the table for `two_steps_nll`, whose gradient takes theirs in."""
    found: tuple[Tensor, Tensor] = _PickRows.apply(weight, picked)
    return found


class _PickRows(torch.autograd.Function):
    """See `pick_rows`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(picked)
        return weight.index_select(0, picked), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor, d_weight: Tensor) -> tuple[Tensor, None]:
        (picked,) = ctx.saved_tensors
        return d_weight.index_add_(0, picked, d_rows), None  # nobody else has it


class _TwoSteps(torch.autograd.Function):
    """See `two_steps_nll`."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        columns: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        classes: Tensor,
        layout: tuple[int, int],
        places: tuple[Tensor, Tensor, Tensor],
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = working_dtype(states)
        total = states.new_zeros((), dtype=exact_dtype(dtype))
        d_states, d_columns, d_shift = (t.new_zeros(t.shape if keep else 0) for t in (states, columns, shift))
        narrow = columns.to(dtype), shift.to(dtype)
        for start in range(0, states.shape[0], DEFAULT_CHUNK_ROWS):
            rows = slice(start, start + DEFAULT_CHUNK_ROWS)
            add_chunk(rows, states, *narrow, classes, layout, (total, d_states, d_columns, d_shift))
        first = total.clone()
        nll = states.new_zeros(states.shape[0], dtype=total.dtype)
        forward_by_pieces((states, weight, bias, *places), dtype, nll, None)
        total += nll.sum()
        ctx.dtype = dtype
        ctx.set_materialize_grads(False)  # no zeros for the output that nothing is derived from
        ctx.mark_non_differentiable(first)
        ctx.save_for_backward(states, weight, bias, *places, d_states, d_columns, d_shift)
        return total, first

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_total is None:
            return (None,) * 9
        *inputs, d_states, d_columns, d_shift = ctx.saved_tensors
        d_states, d_columns, d_shift = scaled((d_states, d_columns, d_shift), d_total)
        d_weight, d_bias = (torch.zeros_like(t) for t in inputs[1:3])
        d_nll = d_total.expand(len(d_states))
        backward_by_pieces(d_nll, tuple(inputs), ctx.dtype, (d_states, d_weight, d_bias))
        return d_states, d_columns, d_shift, d_weight, d_bias, *(None for _ in range(4))
