"""The softmax over classes: its columns, losses, and gradients, some rows at a time.

The line that it equals is `F.cross_entropy(states @ columns.T + shift, classes)`. Logits are summed in fp32 and stay
there. The gradient of the columns is a sum in a fixed order: some partial sums, which the reader adds up in order.

Letters: N tokens, D width, K shortlist, C columns, one for each class that is learned.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.losses.kernels import capability
from grouped_lm.heads.losses.kernels.tiles import (
    FirstTile,
    dot,
    first_tile,
    launch,
    padded,
    product,
    product_options,
)

AT_ONCE = 2**22
"""Logits that exist at once where cuBLAS computes them, 16 MB: 8,738 rows of 480 columns."""
MAX_SPLITS, SPLIT_ROWS = 8, 256
"""Partial sums of the gradient of the columns, so that small C and D fill a GPU; and the least rows of each."""


@dataclass(frozen=True, slots=True)
class FirstSoftmax:
    """The inputs of the first softmax."""

    states: Tensor  # (N, D)
    columns: Tensor  # (C, D) in the type of the products
    shift: Tensor  # (C,) biases
    classes: Tensor  # (N,) int32 classes; C or more where the class is not learned, negative where nothing counts
    fixed: Tensor | None  # (classes,) fp32 constant that is added to the loss of each class; None means 0


class FirstGradients(NamedTuple):
    """The gradients of the summed loss."""

    states: Tensor  # (N, D), like the states
    columns: Tensor  # (splits, C, D) fp32 partial sums
    shift: Tensor  # (splits, C) fp32 partial sums


def first_losses(softmax: FirstSoftmax, weights: Tensor | None, to: FirstGradients | None) -> tuple[Tensor, Tensor]:
    """Return (N,) fp32 losses, and (N,) fp32 zeros for those inside groups; write the gradients into `to`.

    (N,) fp32 `weights` are the gradients of the losses; None means 1.
    """
    states, columns = softmax.states, softmax.columns
    (n_rows, width), n_column = states.shape, columns.shape[0]
    nll, inside = (states.new_empty(n_rows, dtype=torch.float32) for _ in range(2))
    if tile := first_tile(width, columns.dtype, capability(states.device)):
        _fused(softmax, tile, nll, inside, weights, to)
        return nll, inside
    chunk = max(1, AT_ONCE // n_column)
    for start in range(0, n_rows, chunk):
        _by_cublas(softmax, slice(start, min(start + chunk, n_rows)), nll, inside, weights, to)
    return nll, inside


def empty_gradients(states: Tensor, n_column: int, dtype: torch.dtype, keep: bool) -> FirstGradients:
    """Return uninitialised gradients of (N, D) states and C columns, without elements if they are not kept."""
    n_rows, width = states.shape
    splits = int(keep)
    if keep and first_tile(width, dtype, capability(states.device)):
        splits = max(1, min(MAX_SPLITS, n_rows // SPLIT_ROWS))
    d_columns = states.new_empty((splits, n_column, width), dtype=torch.float32)
    return FirstGradients(
        states.new_empty((n_rows if keep else 0, width)), d_columns, d_columns.new_empty(splits, n_column)
    )


def _fused(
    softmax: FirstSoftmax,
    tile: FirstTile,
    nll: Tensor,
    inside: Tensor,
    weights: Tensor | None,
    to: FirstGradients | None,
) -> None:
    states, columns = softmax.states, softmax.columns
    (n_rows, width), n_column, step = states.shape, columns.shape[0], min(64, padded(states.shape[1]))
    masses, factors = (nll if to is None else torch.empty_like(nll)), nll if weights is None else weights
    given = states, columns, softmax.shift, softmax.classes
    sizes = n_rows, n_column, width
    options = product_options(columns.dtype) | {"WIDTH": step, "WEIGHTED": weights is not None, "num_stages": 2}
    launch(
        first_rows,
        (triton.cdiv(n_rows, tile.rows),),
        *given,
        nll if softmax.fixed is None else softmax.fixed,
        *(nll, inside, factors, masses),
        states if to is None else to.states,
        *sizes,
        FIXED=softmax.fixed is not None,
        KEEP=to is not None,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        PADDED=padded(width),
        num_warps=tile.warps,
        **options,
    )
    if to is None:
        return
    splits = to.columns.shape[0]
    span = triton.cdiv(triton.cdiv(n_rows, splits), 32) * 32
    grid = triton.cdiv(n_column, 64), triton.cdiv(width, step), splits
    gradients = masses, factors, to.columns, to.shift
    launch(first_columns, grid, *given, *gradients, *sizes, span, ROWS=32, COLUMNS=64, **options)


def _by_cublas(
    softmax: FirstSoftmax,
    rows: slice,
    nll: Tensor,
    inside: Tensor,
    weights: Tensor | None,
    to: FirstGradients | None,
) -> None:
    columns, n_rows = softmax.columns, rows.stop - rows.start
    states = softmax.states[rows].to(columns.dtype)
    logits = product(states, columns.T)
    errors = columns.new_empty((n_rows if to else 0, columns.shape[0]))
    fixed = softmax.fixed if softmax.fixed is not None else nll
    given = logits, softmax.shift, softmax.classes[rows], fixed, nll[rows], inside[rows]
    launch(
        first_errors,
        (n_rows,),
        *given,
        nll if weights is None else weights[rows],
        errors,
        columns.shape[0],
        FIXED=softmax.fixed is not None,
        WEIGHTED=weights is not None,
        KEEP=to is not None,
        COLUMNS=512,
    )
    if to is None:
        return
    del logits
    to.states[rows] = product(errors, columns)
    if rows.start:
        to.columns[0] += product(errors.T, states)
        to.shift[0] += errors.sum(0, dtype=torch.float32)
    else:
        to.columns[0] = product(errors.T, states)
        torch.sum(errors, 0, dtype=torch.float32, out=to.shift[0])


def mean_columns(
    weight: Tensor, bias: Tensor, group_bias: Tensor, index: tuple[Tensor, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the (K + G, D) columns of shortlist and mean rows in `dtype`, and their (K + G,) fp32 biases.

    `index` are the ids, starts and parts of `TokenIndex`.
    """
    ids, starts, parts = index
    width, n_column = weight.shape[1], ids.shape[0] - parts.shape[0] + group_bias.shape[0]
    columns = weight.new_empty((n_column, width), dtype=dtype)
    shift = weight.new_empty(n_column, dtype=torch.float32)
    step = min(128, padded(width))
    given = weight, bias, group_bias, ids, starts, parts, columns, shift
    n_single = n_column - group_bias.shape[0]
    launch(class_columns, (n_column, triton.cdiv(width, step)), *given, n_single, width, WIDTH=step, MEMBERS=16)
    return columns, shift


@triton.jit
def class_columns(
    weight,
    bias,
    group_bias,
    ids,
    starts,
    parts,
    columns,
    shift,
    n_single,
    width,
    WIDTH: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """Copy a row of the shortlist, or average the rows of a group by the parts of its tokens."""
    own = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < width
    if own < n_single:
        token = tl.load(ids + own).to(tl.int64)
        total = tl.load(weight + token * width + column, mask=inside, other=0.0).to(tl.float32)
        own_bias = tl.load(bias + token).to(tl.float32)
    else:
        total = tl.zeros((WIDTH,), tl.float32)
        last = tl.load(starts + own - n_single + 1)
        for start in range(tl.load(starts + own - n_single), last, MEMBERS):
            member = start + tl.arange(0, MEMBERS)
            there = member < last
            token = tl.load(ids + n_single + member, mask=there, other=0).to(tl.int64)
            part = tl.load(parts + member, mask=there, other=0.0)
            rows = tl.load(
                weight + token[:, None] * width + column[None, :], mask=there[:, None] & inside[None, :], other=0.0
            )
            total += tl.sum(rows.to(tl.float32) * part[:, None], 0)
        own_bias = tl.load(group_bias + own - n_single).to(tl.float32)
    at = columns + own.to(tl.int64) * width + column
    tl.store(at, total.to(columns.dtype.element_ty), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(shift + own, own_bias)


@triton.jit
def _logits(
    states,
    columns,
    shift,
    row,
    column,
    n_rows,
    n_column,
    width,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Return (ROWS, COLUMNS) logits in fp32, -inf behind the last column."""
    logits = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, width, WIDTH):
        d = start + tl.arange(0, WIDTH)
        inside = d < width
        h = tl.load(
            states + row[:, None].to(tl.int64) * width + d[None, :],
            mask=(row < n_rows)[:, None] & inside[None, :],
            other=0.0,
        )
        w = tl.load(
            columns + column[None, :] * width + d[:, None],
            mask=(column < n_column)[None, :] & inside[:, None],
            other=0.0,
        )
        logits = dot(h.to(KIND), w, logits, PRECISION, WIDEN)
    return logits + tl.load(shift + column, mask=column < n_column, other=float("-inf")).to(tl.float32)[None, :]


@triton.jit
def _store_losses(nll, inside, fixed, row, own, there, value, n_column, FIXED: tl.constexpr):
    """Store the losses of rows: their value where the class is learned, and what is fixed; NaN for wrong ids."""
    value = tl.where((own >= 0) & (own < n_column), value, 0.0)
    if FIXED:
        value += tl.load(fixed + own, mask=own >= 0, other=0.0)
    tl.store(nll + row, tl.where(own == -2, float("nan"), value), mask=there)
    tl.store(inside + row, tl.zeros_like(value), mask=there)


@triton.jit
def first_rows(
    states,
    columns,
    shift,
    classes,
    fixed,
    nll,
    inside,
    weights,
    masses,
    d_states,
    n_rows,
    n_column,
    width,
    FIXED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Compute the losses of some rows; with KEEP also their log-sum-exps and the gradient of the states."""
    # Long because a kernel names every pointer, one a line.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < n_rows
    own = tl.load(classes + row, mask=there, other=-1)
    learned = (own >= 0) & (own < n_column)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    hit = tl.zeros((ROWS,), tl.float32)
    for start in range(0, n_column, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        logits = _logits(
            states, columns, shift, row, column, n_rows, n_column, width, KIND, PRECISION, WIDEN, ROWS, COLUMNS, WIDTH
        )
        larger = tl.maximum(top, tl.max(logits, 1))
        mass = mass * tl.exp(top - larger) + tl.sum(tl.exp(logits - larger[:, None]), 1)
        top = larger
        hit += tl.sum(tl.where(column[None, :] == own[:, None], logits, 0.0), 1)
    log_mass = top + tl.log(mass)
    _store_losses(nll, inside, fixed, row, own, there, log_mass - hit, n_column, FIXED)
    if KEEP:
        scale = learned.to(tl.float32)
        if WEIGHTED:
            scale = tl.where(learned, tl.load(weights + row, mask=there, other=0.0), 0.0)
        d = tl.arange(0, PADDED)
        total = tl.zeros((ROWS, PADDED), tl.float32)
        for start in range(0, n_column, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            logits = _logits(
                states,
                columns,
                shift,
                row,
                column,
                n_rows,
                n_column,
                width,
                KIND,
                PRECISION,
                WIDEN,
                ROWS,
                COLUMNS,
                WIDTH,
            )
            error = tl.exp(logits - log_mass[:, None]) - (column[None, :] == own[:, None]).to(tl.float32)
            error = (error * scale[:, None]).to(KIND)
            w = tl.load(
                columns + column[:, None] * width + d[None, :],
                mask=(column < n_column)[:, None] & (d < width)[None, :],
                other=0.0,
            )
            total = dot(error, w, total, PRECISION, WIDEN)
        tl.store(masses + row, log_mass, mask=there)
        at = d_states + row[:, None].to(tl.int64) * width + d[None, :]
        tl.store(at, total.to(d_states.dtype.element_ty), mask=there[:, None] & (d < width)[None, :])


@triton.jit
def first_errors(
    logits,
    shift,
    classes,
    fixed,
    nll,
    inside,
    weights,
    errors,
    n_column,
    FIXED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    KEEP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Do the same as `first_rows` for one row, from logits without their biases; not the gradient of the states."""
    row = tl.program_id(0)
    own = tl.load(classes + row)
    logits += row.to(tl.int64) * n_column
    errors += row.to(tl.int64) * n_column
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    for start in range(0, n_column, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < n_column
        value = tl.load(logits + column, mask=there, other=float("-inf"))
        top = tl.maximum(top, value + tl.load(shift + column, mask=there, other=0.0).to(tl.float32))
    largest = tl.max(top, 0)
    mass = tl.zeros((COLUMNS,), tl.float32)
    hit = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, n_column, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < n_column
        value = tl.load(logits + column, mask=there, other=float("-inf"))
        value += tl.load(shift + column, mask=there, other=0.0).to(tl.float32)
        mass += tl.exp(value - largest)
        hit += tl.where(column == own, value, 0.0)
    log_mass = largest + tl.log(tl.sum(mass, 0))
    _store_losses(nll, inside, fixed, row, own, True, log_mass - tl.sum(hit, 0), n_column, FIXED)
    if KEEP:
        scale = ((own >= 0) & (own < n_column)).to(tl.float32)
        if WEIGHTED:
            scale = tl.where((own >= 0) & (own < n_column), tl.load(weights + row), 0.0)
        for start in range(0, n_column, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            there = column < n_column
            value = tl.load(logits + column, mask=there, other=float("-inf"))
            value += tl.load(shift + column, mask=there, other=0.0).to(tl.float32)
            error = (tl.exp(value - log_mass) - (column == own).to(tl.float32)) * scale
            tl.store(errors + column, error.to(errors.dtype.element_ty), mask=there)


@triton.jit
def first_columns(
    states,
    columns,
    shift,
    classes,
    masses,
    weights,
    d_columns,
    d_shift,
    n_rows,
    n_column,
    width,
    span,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Sum the gradient of some columns over a span of rows; the errors (p - 1 at the target) are computed again."""
    # Long because a kernel names every pointer, one a line.
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    split = tl.program_id(2)
    real = column < n_column
    total = tl.zeros((COLUMNS, WIDTH), tl.float32)
    shifts = tl.zeros((COLUMNS,), tl.float32)
    for start in range(split * span, min((split + 1) * span, n_rows), ROWS):
        row = start + tl.arange(0, ROWS)
        there = row < n_rows
        own = tl.load(classes + row, mask=there, other=-1)
        learned = (own >= 0) & (own < n_column)
        scale = learned.to(tl.float32)
        if WEIGHTED:
            scale = tl.where(learned, tl.load(weights + row, mask=there, other=0.0), 0.0)
        mass = tl.load(masses + row, mask=there, other=0.0)
        # fmt: off
        logits = _logits(
            states, columns, shift, row, column, n_rows, n_column, width, KIND, PRECISION, WIDEN, ROWS, COLUMNS, WIDTH
        )
        # fmt: on
        error = tl.exp(logits - mass[:, None]) - (column[None, :] == own[:, None]).to(tl.float32)
        error = tl.where(there[:, None], error * scale[:, None], 0.0).to(KIND)
        h = tl.load(
            states + row[:, None].to(tl.int64) * width + d[None, :],
            mask=there[:, None] & (d < width)[None, :],
            other=0.0,
        )
        total = dot(tl.trans(error), h.to(KIND), total, PRECISION, WIDEN)
        shifts += tl.sum(error.to(tl.float32), 0)
    place = split * n_column + column
    at = d_columns + place[:, None].to(tl.int64) * width + d[None, :]
    tl.store(at, total, mask=real[:, None] & (d < width)[None, :])
    if tl.program_id(1) == 0:
        tl.store(d_shift + place, shifts, mask=real)
