"""Both steps of a head in one node of the graph: a softmax over classes, then one over the tokens of a group.

`two_steps_nll` equals two operators, `class_nll` and `in_group_loss`. Those have a gradient of the states each, and a
backward pass holds both. Here the second is added to the first.

`TableRows.nll` is for a shortlist and groups whose every weight is a row of one (V, D) table. The gradient of the table
has only the rows that the loss reads: a text uses few tokens of the vocabulary, and a (V, D) gradient would mostly be
zeros. Inside groups the work is done for pairs of a state and a token of its target's group: some tens of thousands for
4,096 states. No product of matrices is as small. The slow line that it equals is `ShortlistHead.loss` with reduction
none.

Letters: N tokens, D width, V vocabulary, C columns of logits, G groups, S slots per group, K shortlist, T tokens of
shortlist and groups, P pairs.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS, class_sums
from grouped_lm.heads.losses.functional import scaled, working_dtype
from grouped_lm.heads.losses.in_group import Places, backward_by_pieces, forward_by_pieces

CHUNK_NUMBERS = 2**16
"""Numbers in rows of the table that are written at once."""
CHUNK_PAIRS = 2**19
"""Pairs at once, times D: a fifth to a half as many rows of the table are among them."""
TOKENS_AT_ONCE = 512
"""Rows of the table whose part of the gradient exists twice; fewer are slower."""

with warnings.catch_warnings():  # torch warns once that this layout is beta; the parts used here are tested
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()


@dataclass(frozen=True, slots=True)
class TwoStepTargets:
    """The places of N targets in both steps."""

    classes: Tensor  # (N,) int64 in the first softmax, -1 where ignored
    layout: tuple[int, int]  # `n_single` and `directions` of `class_nll`
    places: Places  # Members of the groups, groups and slots, as for `in_group_loss`


def two_steps_nll(
    states: Tensor, first: tuple[Tensor, Tensor], table: tuple[Tensor, Tensor], targets: TwoStepTargets
) -> tuple[Tensor, Tensor]:
    """Return the summed -log p(class) - log p(token | group), and the first part of it, which has no gradient.

    It may be used where `at_once` holds.

    `first` has the (C, D) weights and (C,) biases of the first softmax, `table` the (V, D) rows and (V,) biases of the
    second.
    """
    total, first_part = _TwoSteps.apply(states, *first, *table, targets, torch.is_grad_enabled())
    return total, first_part


def pick_rows(weight: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P, D) rows of a (V, D) table, and the table for `two_steps_nll`, whose gradient includes theirs."""
    rows, table = _PickRows.apply(weight, picked)
    return rows, table


class _PickRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(picked)
        return weight.index_select(0, picked), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor, d_weight: Tensor) -> tuple[Tensor, None]:
        (picked,) = ctx.saved_tensors
        return d_weight.index_add_(0, picked, d_rows), None  # nobody else holds d_weight


class _TwoSteps(torch.autograd.Function):
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
        dtype, sizes = working_dtype(states), (*targets.layout, DEFAULT_CHUNK_ROWS)
        total, *gradients = class_sums(states, class_weight, class_bias, targets.classes, sizes, dtype, keep)
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
        states, weight, bias, members, groups, slots, d_states, d_class_weight, d_class_bias = ctx.saved_tensors
        d_states, d_class_weight, d_class_bias = scaled((d_states, d_class_weight, d_class_bias), d_total)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        d_nll = d_total.expand(len(d_states))
        inputs, places = (states, weight, bias), (members, groups, slots)
        backward_by_pieces(d_nll, inputs, places, ctx.dtype, (d_states, d_weight, d_bias))
        return d_states, d_class_weight, d_class_bias, d_weight, d_bias, None, None


class TableRows(nn.Module):
    """The rows of a (V, D) table that a shortlist and groups read.

    Args:
        outside: (K,) ids of the shortlist.
        members: (G, S) ids of every group, -1 where it has no more.
        parts: (V,) fp32 share of every token in its group's mean row.
        sparse: return the gradient of a table that is no leaf as a sparse tensor. `grouped_lm.optim.used_rows` has
            such a table.
    """

    ids: Tensor  # (T,), first the shortlist's, then the groups', by group and slot
    starts: Tensor  # (G + 1,) first token of each group among the tokens in groups, and their number
    owners: Tensor  # (T - K,) groups of the tokens in groups
    parts: Tensor  # (T - K,) shares of the tokens in groups in the mean rows

    def __init__(self, outside: Tensor, members: Tensor, parts: Tensor, sparse: bool) -> None:
        super().__init__()
        inside = members[members >= 0]
        self.n_single, self.sparse = outside.numel(), sparse
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
        """Write the gradient of the (G, D) mean rows as that of the (T - K, D) rows of their tokens."""
        step = max(1, CHUNK_NUMBERS // d_mean.shape[1])
        parts = self.parts.to(d_mean.dtype).unsqueeze(1)
        for to, of, part in zip(*(t.split(step) for t in (d_inside, self.owners, parts)), strict=True):
            torch.mul(d_mean.index_select(0, of), part, out=to)

    def nll(
        self, states: Tensor, weight: Tensor, bias: Tensor, group_bias: Tensor, targets: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the summed -log p(token), and the part of it that is -log p(class), which has no gradient.

        The first softmax has the logits W h + b of the K tokens, and those of the mean rows of groups with biases of
        their own. Inside a group the logits are W h + b of its tokens. Under autocast the matrix products are in its
        type, the second step and all sums over chunks in fp32. It may be used where `at_once` holds.

        The targets are (N,) int64 classes in [0, K + G), or -1 for rows that count nowhere, and (N,) int64 places in
        the shortlist or the group. The (V, D) weights are fp32 or fp64.
        """
        given = states, weight, bias, group_bias, self, targets, torch.is_grad_enabled()
        total, first = _TableRowsLoss.apply(*given)
        return total, first


class _TableRowsLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        group_bias: Tensor,
        table: TableRows,
        targets: tuple[Tensor, Tensor],
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype, n_single, (classes, slots) = working_dtype(states), table.n_single, targets
        own, sizes = table.ids[:n_single], (n_single + len(group_bias), 1, DEFAULT_CHUNK_ROWS)
        total, d_states, d_class_weight, d_class_bias = class_sums(
            states,
            torch.cat([weight.index_select(0, own), table.mean_rows(weight)]),
            torch.cat([bias.index_select(0, own), group_bias]),
            classes,
            sizes,
            dtype,
            keep,
        )
        first = total.clone()
        d_rows = weight.new_empty(len(table.ids) if keep else 0, weight.shape[1])
        d_bias = bias.new_zeros(len(table.ids) if keep else 0)
        if keep:
            d_rows[:n_single], d_bias[:n_single] = d_class_weight[:n_single], d_class_bias[:n_single]
            table.share(d_class_weight[n_single:], d_rows[n_single:])
        d_group_bias = d_class_bias[n_single:].clone()
        del d_class_weight, d_class_bias
        inside = d_rows[n_single:], d_bias[n_single:]
        for some, groups in _by_group(table, classes - n_single, weight.shape[1]):
            width = table.starts[groups + 1] - table.starts[groups]
            starts = width.cumsum(0) - width
            pairs = _Pairs(some, groups, width, starts, starts + slots[some])
            _add_pairs(table, pairs, states, weight, bias, (total, d_states, *inside))

        ctx.ids, ctx.sparse, ctx.shape = table.ids, table.sparse and not weight.is_leaf, weight.shape
        ctx.set_materialize_grads(False)  # no zeros for the output without a gradient
        ctx.mark_non_differentiable(first)
        ctx.save_for_backward(d_states, d_rows, d_bias, d_group_bias)
        return total, first

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_total is None:
            return (None,) * 7
        d_states, d_rows, d_bias, d_group_bias = scaled(ctx.saved_tensors, d_total)
        if ctx.sparse:
            d_weight = torch.sparse_coo_tensor(ctx.ids.unsqueeze(0), d_rows, ctx.shape, check_invariants=False)
        else:
            d_weight = d_rows.new_zeros(ctx.shape).index_copy_(0, ctx.ids, d_rows)
        d_bias = d_bias.new_zeros(ctx.shape[0]).index_copy_(0, ctx.ids, d_bias)
        return d_states, d_weight, d_bias, d_group_bias, None, None, None


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
    for some, groups_of_some in zip(rows.tensor_split(borders), own.tensor_split(borders), strict=True):
        if some.numel():
            yield some, groups_of_some


@dataclass(slots=True)
class _Pairs:
    """The P pairs of n states, sorted by group, and the tokens of their targets' groups."""

    rows: Tensor  # (n,) rows of the states
    groups: Tensor  # (n,) their groups
    width: Tensor  # (n,) tokens of those
    starts: Tensor  # (n,) first pair of each state
    target: Tensor  # (n,) the pair of each state and its target


def _add_pairs(
    table: TableRows,
    pairs: _Pairs,
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Add the losses of some rows inside their groups, and their gradients if those are kept.

    The pairs are a sparse matrix of states by tokens. Its numbers are the logits and then their gradients. Its products
    with the table and, transposed, with the states are the gradients of the states and of the table.
    """
    total, d_states, d_inside, d_bias = outputs
    part, width, starts = states.index_select(0, pairs.rows).to(weight.dtype), pairs.width, pairs.starts
    ends = starts + width
    row = torch.repeat_interleave(width, output_size=int(ends[-1]))
    place = torch.arange(len(row)).add_((table.starts[pairs.groups] - starts)[row])
    ids = table.ids[table.n_single :][place]
    logits = _products(part, weight, F.pad(ends, (1, 0)), ids).add_(bias[ids])

    top = torch.segment_reduce(logits, "max", lengths=width)
    shifted = logits[pairs.target] - top
    error = logits.sub_(top[row]).exp_()
    mass = torch.zeros_like(top).index_add_(0, row, error)
    total += (mass.log() - shifted).sum()
    if d_inside.shape[:1] != table.owners.shape:
        return
    error.div_(mass[row])
    error[pairs.target] -= 1
    d_bias.index_add_(0, place, error)
    to_states = F.embedding_bag(ids, weight, starts, mode="sum", per_sample_weights=error)
    d_states.index_add_(0, pairs.rows, to_states.to(d_states.dtype))
    del row, place, ids, to_states
    _add_row_gradients(table, pairs, part, error, d_inside)


def _add_row_gradients(table: TableRows, pairs: _Pairs, states: Tensor, error: Tensor, d_inside: Tensor) -> None:
    """Add the gradients of the tokens' rows: for each token, the sum of its (n, D) states by their (P,) errors."""
    counts = torch.bincount(pairs.groups, minlength=len(table.starts) - 1)
    for tokens in (counts > 0)[table.owners].nonzero().squeeze(1).split(TOKENS_AT_ONCE):
        owners = table.owners[tokens]
        height = counts[owners]
        ends = height.cumsum(0)
        token = torch.repeat_interleave(height, output_size=int(ends[-1]))
        row = torch.arange(len(token)).add_((counts.cumsum(0)[owners] - ends)[token])
        own = error[pairs.starts[row] + (tokens - table.starts[owners])[token]]
        to_rows = F.embedding_bag(row, states, ends - height, mode="sum", per_sample_weights=own)
        d_inside.index_add_(0, tokens, to_rows)


def _products(states: Tensor, weight: Tensor, borders: Tensor, ids: Tensor) -> Tensor:
    """Return the (P,) products of states and rows of the table; state n has those at borders[n] to borders[n + 1]."""
    pairs = torch.sparse_csr_tensor(
        borders, ids, states.new_zeros(len(ids)), (len(states), len(weight)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pairs, states, weight.T).values()
