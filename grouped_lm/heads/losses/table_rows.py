"""The summed loss of a shortlist beside groups whose every weight is a row of one (V, D) table, both steps in one go.

The gradients are computed with the loss. That of the table has the rows which the loss reads, and no others: where a
text has few of the vocabulary's tokens, a (V, D) buffer would be cleared and passed on for its zeros. Inside groups
the work is one of pairs, a state and a token of its target's group each: some tens of thousands for 4,096 states, and
no product of matrices is as small. The slow line that it equals is `ShortlistHead.loss` with reduction none.

Letters: N tokens, D width, V vocabulary, K shortlist, G groups, T tokens of both, P pairs.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS, add_chunk, exact_dtype, scaled, working_dtype

CHUNK_NUMBERS = 2**16
"""Numbers in rows of the table that are written at once."""
CHUNK_PAIRS = 2**19
"""Pairs at once, times D: a fifth to a half as many rows of the table are among them."""
TOKENS_AT_ONCE = 512
"""Rows of the table whose part of the gradient exists twice; fewer are slower."""

with warnings.catch_warnings():  # torch calls this layout beta, once; what is used of it is tested here
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()


class TableRows(nn.Module):
    """Which rows of a (V, D) table a shortlist and groups read.

    Args:
        outside: (K,) ids of the shortlist.
        members: (G, S) ids of every group, -1 where it has no more.
        parts: (V,) fp32 of every token in its group's mean row.
    """

    ids: Tensor
    """(T,), the shortlist's and then the groups', by group and slot."""
    starts: Tensor
    """(G + 1,), where each group begins among those behind the shortlist, and their number."""
    owners: Tensor
    """(T - K,) groups of those."""
    parts: Tensor
    """(T - K,) of those in the mean rows."""

    def __init__(self, outside: Tensor, members: Tensor, parts: Tensor) -> None:
        super().__init__()
        inside = members[members >= 0]
        self.n_single = outside.numel()
        self.register_buffer("ids", torch.cat([outside, inside]), persistent=False)
        self.register_buffer("starts", F.pad((members >= 0).sum(1).cumsum(0), (1, 0)), persistent=False)
        self.register_buffer("owners", torch.repeat_interleave(self.starts.diff()), persistent=False)
        self.register_buffer("parts", parts[inside], persistent=False)

    def mean_rows(self, weight: Tensor) -> Tensor:
        """Return the (G, D) mean rows of the groups."""
        members, parts = self.ids[self.n_single :], self.parts.to(weight.dtype)
        return F.embedding_bag(
            members, weight, self.starts, mode="sum", per_sample_weights=parts, include_last_offset=True
        )

    def share(self, d_mean: Tensor, d_inside: Tensor) -> None:
        """Write the gradient of the (G, D) mean rows as that of the (T - K, D) rows which they are the means of."""
        step = max(1, CHUNK_NUMBERS // d_mean.shape[1])
        parts = self.parts.to(d_mean.dtype).unsqueeze(1)
        for to, of, part in zip(*(t.split(step) for t in (d_inside, self.owners, parts)), strict=True):
            torch.mul(d_mean.index_select(0, of), part, out=to)

    def nll(
        self,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        group_bias: Tensor,
        classes: Tensor,
        slots: Tensor,
        sparse: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the summed -log p(token), and the part of it that is -log p(class), which carries no gradient.

        Logits of the first softmax are W h + b of the K tokens, and of the groups' mean rows with biases of their own;
        inside a group W h + b of its tokens. Under autocast the matrix products are in its type, the second step and
        all sums over chunks in fp32. Where `at_once` alone: how many rows each group has is asked of the tensors.

        Args:
            states: (N, D).
            weight: (V, D), fp32 or fp64.
            bias: (V,).
            group_bias: (G,).
            classes: (N,) int64 in [0, K + G), or -1 for rows that count nowhere.
            slots: (N,) int64, the target's place in the shortlist or its group.
            sparse: leave the gradient of `weight` a sparse tensor, for a table whose other gradients are dense; torch
                adds up both in place.
        """
        found: tuple[Tensor, Tensor] = _TableRowsLoss.apply(
            states, weight, bias, group_bias, self, classes, slots, sparse, torch.is_grad_enabled()
        )
        return found


class _TableRowsLoss(torch.autograd.Function):
    """See `TableRows.nll`."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        group_bias: Tensor,
        table: TableRows,
        classes: Tensor,
        slots: Tensor,
        sparse: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype, n_single = working_dtype(states), table.n_single
        own = table.ids[:n_single]
        columns = torch.cat([weight.index_select(0, own), table.mean_rows(weight)])
        shift = torch.cat([bias.index_select(0, own), group_bias])
        total = states.new_zeros((), dtype=exact_dtype(dtype))
        d_states, d_columns, d_shift = (t.new_zeros(t.shape if keep else 0) for t in (states, columns, shift))
        columns, shift = columns.to(dtype), shift.to(dtype)
        for start in range(0, states.shape[0], DEFAULT_CHUNK_ROWS):
            some = slice(start, start + DEFAULT_CHUNK_ROWS)
            layout = columns.shape[0], 1
            add_chunk(some, states, columns, shift, classes, layout, (total, d_states, d_columns, d_shift))
        first = total.clone()
        del columns, shift

        d_rows = weight.new_empty(len(table.ids) if keep else 0, weight.shape[1])
        d_bias = bias.new_zeros(len(table.ids) if keep else 0)
        if keep:
            d_rows[:n_single], d_bias[:n_single] = d_columns[:n_single], d_shift[:n_single]
            table.share(d_columns[n_single:], d_rows[n_single:])
        d_group_bias = d_shift[n_single:].clone()
        del d_columns, d_shift
        inside = d_rows[n_single:], d_bias[n_single:]
        for rows, groups in _by_group(table, classes - n_single, weight.shape[1]):
            _add_pairs(table, rows, groups, slots, states, weight, bias, (total, d_states, *inside))

        ctx.ids, ctx.sparse, ctx.shape = table.ids, sparse, weight.shape
        ctx.set_materialize_grads(False)  # no zeros for the output that nothing is derived from
        ctx.mark_non_differentiable(first)
        ctx.save_for_backward(d_states, d_rows, d_bias, d_group_bias)
        return total, first

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_total is None:
            return (None,) * 9
        d_states, d_rows, d_bias, d_group_bias = scaled(ctx.saved_tensors, d_total)
        if ctx.sparse:
            d_weight = torch.sparse_coo_tensor(ctx.ids.unsqueeze(0), d_rows, ctx.shape, check_invariants=False)
        else:
            d_weight = d_rows.new_zeros(ctx.shape).index_copy_(0, ctx.ids, d_rows)
        d_bias = d_bias.new_zeros(ctx.shape[0]).index_copy_(0, ctx.ids, d_bias)
        return d_states, d_weight, d_bias, d_group_bias, *(None for _ in range(5))


def _by_group(table: TableRows, groups: Tensor, n_embd: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (n,) rows that have a group, sorted by it, and their groups, few enough for `CHUNK_PAIRS`."""
    rows = (groups >= 0).nonzero().squeeze(1)
    own, order = groups[rows].sort()
    rows, pairs = rows[order], table.starts.diff()[own].cumsum(0)
    if not rows.numel():
        return
    most = max(1, CHUNK_PAIRS // n_embd)
    limits = most * torch.arange(1, 1 + int(pairs[-1]) // most)
    borders = torch.searchsorted(pairs, limits, right=True)
    yield from zip(rows.tensor_split(borders), own.tensor_split(borders), strict=True)


def _add_pairs(
    table: TableRows,
    rows: Tensor,
    groups: Tensor,
    slots: Tensor,
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Add the losses of some rows inside their groups, and their gradients where those have a shape.

    The pairs are a sparse matrix of states by tokens: its numbers are the logits and then their gradients, its products
    with the table and, transposed, with the states are the gradients of the states and of the table.
    """
    if not rows.numel():
        return
    total, d_states, d_inside, d_bias = outputs
    part, first_token = states.index_select(0, rows).to(weight.dtype), table.starts[groups]
    width = table.starts[groups + 1] - first_token
    ends = width.cumsum(0)
    starts = ends - width
    row = torch.repeat_interleave(width, output_size=int(ends[-1]))
    place = torch.arange(len(row)).add_((first_token - starts)[row])
    ids = table.ids[table.n_single :][place]
    logits = _products(part, weight, F.pad(ends, (1, 0)), ids).add_(bias[ids])

    target = starts + slots[rows]
    top = torch.segment_reduce(logits, "max", lengths=width)
    shifted = logits[target] - top
    error = logits.sub_(top[row]).exp_()
    mass = torch.zeros_like(top).index_add_(0, row, error)
    total += (mass.log() - shifted).sum()
    if d_inside.shape[:1] != table.owners.shape:
        return
    error.div_(mass[row])
    error[target] -= 1
    d_bias.index_add_(0, place, error)
    to_states = F.embedding_bag(ids, weight, starts, mode="sum", per_sample_weights=error)
    d_states.index_add_(0, rows, to_states.to(d_states.dtype))
    del row, place, ids, to_states

    counts = torch.bincount(groups, minlength=len(table.starts) - 1)
    for tokens in (counts > 0)[table.owners].nonzero().squeeze(1).split(TOKENS_AT_ONCE):
        owners = table.owners[tokens]
        height = counts[owners]
        ends = height.cumsum(0)
        token = torch.repeat_interleave(height, output_size=int(ends[-1]))
        row = torch.arange(len(token)).add_((counts.cumsum(0)[owners] - ends)[token])
        own = error[starts[row] + (tokens - table.starts[owners])[token]]
        to_rows = F.embedding_bag(row, part, ends - height, mode="sum", per_sample_weights=own)
        d_inside.index_add_(0, tokens, to_rows)


def _products(states: Tensor, weight: Tensor, borders: Tensor, ids: Tensor) -> Tensor:
    """Return the (P,) products of states and rows of the table, those of state n at borders[n] to borders[n + 1]."""
    pairs = torch.sparse_csr_tensor(
        borders, ids, states.new_zeros(len(ids)), (len(states), len(weight)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pairs, states, weight.T).values()
