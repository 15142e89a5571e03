"""Both steps of a head by kernels: 10 launches for a summed loss and its gradients, and no number read by the host.

The lines that they equal are those of `kernel_loss`. Letters: N tokens, D width, V vocabulary, K shortlist, C columns
of the first softmax, G groups.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.losses.kernels.first import (
    FirstGradients,
    FirstSoftmax,
    empty_gradients,
    first_losses,
    mean_columns,
)
from grouped_lm.heads.losses.kernels.inside import Groups, Scale, inside_losses, table_gradient
from grouped_lm.heads.losses.kernels.route import Route, n_bins, route
from grouped_lm.heads.losses.kernels.tiles import launch, launching_on

SUM_ROWS = 4096
"""Losses that the one program of the sum holds at once."""


class Inputs(NamedTuple):
    """Tensors of the loss; weights may be fp32, bf16 or fp16, and the index is int32."""

    states: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)
    class_weight: Tensor | None  # (C, D), or None: the rows of the shortlist and the mean rows of groups
    class_bias: Tensor  # (C,), or (C - K,) of the groups alone where `class_weight` is None
    token_class: Tensor  # (V,)
    token_slot: Tensor  # (V,)
    ids: Tensor  # (V,) shortlist, then tokens by group and slot
    starts: Tensor  # (G + 1,)
    parts: Tensor  # (V - K,) fp32 shares in the mean rows
    fixed: Tensor  # (K + G,) fp32 constant of the loss of each class
    work: Tensor  # (B, 3)

    @property
    def n_single(self) -> int:
        """K."""
        return self.ids.shape[0] - self.parts.shape[0]


class Kept(NamedTuple):
    """What the backward pass needs besides the inputs; gradients have no elements where they are not kept."""

    slots: Tensor
    place: Tensor
    borders: Tensor
    tiles: Tensor
    classes: Tensor
    log_mass: Tensor  # (N,) fp32, inside groups
    d_states: Tensor
    d_columns: Tensor  # (splits, C, D) fp32
    d_shift: Tensor  # (splits, C) fp32

    @property
    def route(self) -> Route:
        """The route of the targets."""
        return Route(self.classes, self.slots, self.place, self.borders, self.tiles)


class Gradients(NamedTuple):
    """Gradients of the inputs."""

    states: Tensor
    weight: Tensor
    bias: Tensor
    class_weight: Tensor | None
    class_bias: Tensor


def losses(given: Inputs, targets: Tensor, dtype: torch.dtype, keep: bool) -> tuple[Tensor, Tensor, Kept]:
    """Return the (N,) fp32 losses of both steps for (N,) int64 targets, N >= 1; with `keep` their sum's gradients."""
    with launching_on(given.states.device):
        way = route(targets, (given.token_class, given.token_slot), given.n_single, given.starts.shape[0] - 1)
        softmax = _first_softmax(given, way.classes, dtype)
        found = empty_gradients(given.states, softmax.columns.shape[0], dtype, keep)
        first, inside = first_losses(softmax, None, found if keep else None)
        mass = inside_losses(_groups(given, dtype), way, way.slots, inside, d_states=found.states if keep else None)
    places = way.slots, way.place, way.borders, way.tiles, way.classes
    return first, inside, Kept(*places, mass, *found)


def shapes(given: Inputs, dtype: torch.dtype, keep: bool) -> Kept:
    """Return uninitialised tensors with the shapes of what `losses` keeps."""
    states, (n_rows, _width) = given.states, given.states.shape
    n_column = given.class_bias.shape[0] + (given.n_single if given.class_weight is None else 0)
    n_bin = n_bins(given.starts.shape[0] - 1)
    by_row, by_group = (states.new_empty(size, dtype=torch.int32) for size in (n_rows, n_bin))
    mass = states.new_empty(n_rows, dtype=torch.float32)
    found = empty_gradients(states, n_column, dtype, keep)
    return Kept(by_row, by_row.clone(), by_group, by_group.clone(), by_row.clone(), mass, *found)


def _first_softmax(given: Inputs, classes: Tensor, dtype: torch.dtype) -> FirstSoftmax:
    if given.class_weight is None:
        index = given.ids, given.starts, given.parts
        columns, shift = mean_columns(given.weight, given.bias, given.class_bias, index, dtype)
    else:
        columns, shift = given.class_weight.to(dtype).contiguous(), given.class_bias
    return FirstSoftmax(given.states, columns, shift, classes, given.fixed)


def _groups(given: Inputs, dtype: torch.dtype) -> Groups:
    return Groups(given.states, given.weight, given.bias, given.ids, given.n_single, given.starts, dtype)


def sums(first: Tensor, inside: Tensor, classes: Tensor, mean: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the () sum of both losses, the sums of each, and their () divisor, which is 1 unless a mean is wanted."""
    total, first_sum, inside_sum, divisor = (first.new_empty(()) for _ in range(4))
    given = first, inside, classes, total, first_sum, inside_sum, divisor, first.shape[0]
    with launching_on(first.device):
        launch(
            sum_losses, (1,), *given, MEAN=mean, ROWS=min(SUM_ROWS, triton.next_power_of_2(first.shape[0])), num_warps=8
        )
    return total, first_sum, inside_sum, divisor


def gradients_of_sum(
    given: Inputs, kept: Kept, dtype: torch.dtype, d_total: Tensor, divisor: Tensor, overwrite: bool
) -> Gradients:
    """Return the gradients of a sum over its divisor, times the () `d_total`; `kept` may be overwritten."""
    d_states = kept.d_states if overwrite else kept.d_states.clone()
    with launching_on(d_states.device):
        found = _of_weights(given, kept, dtype, Scale(whole=d_total, divisor=divisor))
        numbers = d_states.numel()
        launch(scale_states, (triton.cdiv(numbers, 1024),), d_states, d_total, divisor, numbers, BLOCK=1024)
    return Gradients(d_states, *found)


def gradients_of_rows(given: Inputs, kept: Kept, dtype: torch.dtype, d_first: Tensor, d_inside: Tensor) -> Gradients:
    """Return the gradients of the inputs for (N,) fp32 gradients of both losses; the softmaxes are computed again."""
    with launching_on(d_first.device):
        softmax = _first_softmax(given, kept.classes, dtype)
        found = empty_gradients(given.states, softmax.columns.shape[0], dtype, True)
        _, inside = first_losses(softmax, d_first, found)
        inside_losses(_groups(given, dtype), kept.route, kept.slots, inside, d_states=found.states, weights=d_inside)
        kept = Kept(*kept[:6], *found)
        return Gradients(found.states, *_of_weights(given, kept, dtype, Scale(weights=d_inside)))


def _of_weights(
    given: Inputs, kept: Kept, dtype: torch.dtype, scale: Scale
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return the gradients of the table, its biases, the weights of classes if there are any, and their biases."""
    weight, bias, class_bias = (torch.empty_like(t) for t in (given.weight, given.bias, given.class_bias))
    found = FirstGradients(kept.d_states, kept.d_columns, kept.d_shift)
    first, to = (found, given.parts), (weight, bias, class_bias)
    rows = _groups(given, dtype), kept.route, kept.slots, kept.log_mass, given.work, scale
    if given.class_weight is None:
        table_gradient(*rows, first, to)
        return weight, bias, None, class_bias
    table_gradient(*rows, None, to)
    class_weight = torch.empty_like(given.class_weight)
    n_column, width = class_weight.shape
    factors = (kept.d_shift, kept.d_shift) if scale.whole is None else (scale.whole, scale.divisor)
    launch(
        sum_splits,
        (n_column, triton.cdiv(width, 256)),
        *(kept.d_columns, kept.d_shift, *factors, class_weight, class_bias, n_column, width),
        SCALED=scale.whole is not None,
        SPLITS=kept.d_columns.shape[0],
        WIDTH=256,
    )
    return weight, bias, class_weight, class_bias


@triton.jit
def sum_losses(
    first, inside, classes, total, first_sum, inside_sum, divisor, n_rows, MEAN: tl.constexpr, ROWS: tl.constexpr
):
    """Sum both losses in order, and divide by the number of rows that count, or by 1 where there is none."""
    lane = tl.arange(0, ROWS)
    firsts = tl.zeros((ROWS,), tl.float32)
    insides = tl.zeros((ROWS,), tl.float32)
    count = tl.zeros((ROWS,), tl.int32)
    for start in range(0, n_rows, ROWS):
        there = start + lane < n_rows
        firsts += tl.load(first + start + lane, mask=there, other=0.0)
        insides += tl.load(inside + start + lane, mask=there, other=0.0)
        count += (tl.load(classes + start + lane, mask=there, other=-1) != -1).to(tl.int32)
    by = 1.0
    if MEAN:
        by = tl.maximum(tl.sum(count, 0), 1).to(tl.float32)
    a = tl.sum(firsts, 0)
    b = tl.sum(insides, 0)
    tl.store(total, (a + b) / by)
    tl.store(first_sum, a / by)
    tl.store(inside_sum, b / by)
    tl.store(divisor, by)


@triton.jit
def scale_states(d_states, whole, divisor, numbers, BLOCK: tl.constexpr):
    """Scale the gradient of the states in place, unless the factor is 1."""
    factor = tl.load(whole).to(tl.float32) / tl.load(divisor)
    if factor == 1.0:
        return
    at = d_states + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK) < numbers
    value = tl.load(at, mask=there, other=0.0).to(tl.float32) * factor
    tl.store(at, value.to(d_states.dtype.element_ty), mask=there)


@triton.jit
def sum_splits(
    d_columns,
    d_shift,
    whole,
    divisor,
    d_weight,
    d_bias,
    n_column,
    width,
    SCALED: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Add up the partial sums of one column in order."""
    column = tl.program_id(0)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    shift = tl.zeros((), tl.float32)
    for split in range(SPLITS):
        place = (split * n_column + column).to(tl.int64)
        total += tl.load(d_columns + place * width + d, mask=d < width, other=0.0)
        shift += tl.load(d_shift + place)
    factor = 1.0
    if SCALED:
        factor = tl.load(whole).to(tl.float32) / tl.load(divisor)
    at = d_weight + column.to(tl.int64) * width + d
    tl.store(at, (total * factor).to(d_weight.dtype.element_ty), mask=d < width)
    if tl.program_id(1) == 0:
        tl.store(d_bias + column, (shift * factor).to(d_bias.dtype.element_ty))
