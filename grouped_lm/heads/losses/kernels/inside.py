"""The softmax inside groups whose tokens are rows of one table, and the gradient of that table.

The line that it equals is `F.cross_entropy(states[rows] @ weight[ids].T + bias[ids], slots[rows])` of every group. The
rows are sorted by group (`route`). Each number has one writer. The gradient of the table computes the logits again, so
no (N, S) tensor exists.

Letters: N tokens, D width, V vocabulary, K shortlist, G groups, S slots per group.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.losses.kernels import capability
from grouped_lm.heads.losses.kernels.first import FirstGradients
from grouped_lm.heads.losses.kernels.route import Route, group_of_tile
from grouped_lm.heads.losses.kernels.tiles import TILE_ROWS, dot, launch, product_options, slot_step


@dataclass(frozen=True, slots=True)
class Groups:
    """States, the table, and its rows by group."""

    states: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)
    ids: Tensor  # int32 ids: those of a shortlist, then by group and slot; negative ones are none
    n_single: int  # K
    starts: Tensor  # (G + 1,) int32 first of each group among the ids behind the shortlist
    dtype: torch.dtype  # of the products

    @property
    def n_group(self) -> int:
        """G."""
        return self.starts.shape[0] - 1


@dataclass(frozen=True, slots=True)
class Scale:
    """The gradients of the losses inside groups: (N,) fp32 weights, or a () gradient over a () divisor."""

    weights: Tensor | None = None
    whole: Tensor | None = None
    divisor: Tensor | None = None


def inside_losses(
    groups: Groups,
    route: Route,
    slots: Tensor,
    nll: Tensor,
    hits: Tensor | None = None,
    d_states: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Write the losses of rows that have a group into (N,) `nll`, and the rows whose token is likeliest into `hits`.

    Returns:
        The (N,) fp32 log-sum-exps of those rows. The gradients of the states, times (N,) `weights`, are added to
        `d_states`.
    """
    states, width = groups.states, groups.states.shape[1]
    step = slot_step(width, capability(states.device))
    log_mass = torch.empty_like(nll)
    given = (
        states,
        groups.weight,
        groups.bias,
        groups.ids,
        groups.starts,
        slots,
        route.place,
        route.borders,
        route.tiles,
    )
    outputs = nll, log_mass, nll if hits is None else hits, states if d_states is None else d_states
    launch(
        inside_rows,
        (states.shape[0] // TILE_ROWS + groups.n_group,),
        *given,
        nll if weights is None else weights,
        *outputs,
        groups.n_group,
        groups.n_single,
        width,
        HITS=hits is not None,
        KEEP=d_states is not None,
        WEIGHTED=weights is not None,
        BINS=route.tiles.shape[0],
        num_stages=2,
        **step,
        **product_options(groups.dtype),
    )
    return log_mass


def table_gradient(
    groups: Groups,
    route: Route,
    slots: Tensor,
    log_mass: Tensor,
    work: Tensor,
    scale: Scale,
    first: tuple[FirstGradients, Tensor] | None,
    to: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the gradients of the table, of its biases and of the biases of groups into `to`.

    Every token of `work` is written once: (B, 3) int32 group (-1 in the shortlist), first place among the ids, count.
    `first` are the gradients of the columns of shortlist and mean rows, and the parts of tokens in the latter; without
    it there are neither, and the biases of groups are not written.
    """
    width, nothing = groups.states.shape[1], log_mass
    step = slot_step(width, capability(groups.states.device))
    columns, shift, parts, n_column, splits = nothing, nothing, nothing, 0, 0
    if first is not None:
        columns, shift, parts = first[0].columns, first[0].shift, first[1]
        splits, n_column = columns.shape[:2]
    given = groups.states, groups.weight, groups.bias, groups.ids, groups.starts
    sorted_rows = slots, route.place, route.borders, log_mass
    factors = [nothing if t is None else t for t in (scale.weights, scale.whole, scale.divisor)]
    launch(
        table_rows,
        (work.shape[0], triton.cdiv(width, step["WIDTH"])),
        *given,
        *sorted_rows,
        work,
        *factors,
        columns,
        shift,
        parts,
        *to,
        groups.n_single,
        n_column,
        width,
        WEIGHTED=scale.weights is not None,
        SCALED=scale.whole is not None,
        SPLITS=splits,
        num_stages=2,
        **step,
        **product_options(groups.dtype),
    )


@triton.jit
def _logits(
    states,
    weight,
    bias,
    row,
    there,
    token,
    real,
    width,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Return (ROWS, SLOTS) logits in fp32, -inf where there is no token."""
    logits = tl.zeros((ROWS, SLOTS), tl.float32)
    for start in range(0, width, WIDTH):
        d = start + tl.arange(0, WIDTH)
        inside = d < width
        h = tl.load(
            states + row[:, None].to(tl.int64) * width + d[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        w = tl.load(weight + token[None, :] * width + d[:, None], mask=real[None, :] & inside[:, None], other=0.0)
        logits = dot(h.to(KIND), w.to(KIND), logits, PRECISION, WIDEN)
    return logits + tl.load(bias + token, mask=real, other=float("-inf")).to(tl.float32)[None, :]


@triton.jit
def _add_to_states(
    states,
    weight,
    bias,
    ids,
    d_states,
    row,
    there,
    own,
    total,
    scale,
    first,
    size,
    width,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Add the gradient of the states of a tile of rows, whose log-sum-exps are `total`."""
    for start in range(0, size, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        token = tl.load(ids + first + slot, mask=slot < size, other=-1).to(tl.int64)
        real = token >= 0
        logits = _logits(
            states, weight, bias, row, there, token, real, width, KIND, PRECISION, WIDEN, ROWS, SLOTS, WIDTH
        )
        error = tl.exp(logits - total[:, None]) - (slot[None, :] == own[:, None]).to(tl.float32)
        error = (error * scale[:, None]).to(KIND)
        tl.debug_barrier()  # what other threads of this program added for earlier slots must be seen
        for begin in range(0, width, WIDTH):
            d = begin + tl.arange(0, WIDTH)
            inside = d < width
            at = d_states + row[:, None].to(tl.int64) * width + d[None, :]
            mask = there[:, None] & inside[None, :]
            w = tl.load(weight + token[:, None] * width + d[None, :], mask=real[:, None] & inside[None, :], other=0.0)
            more = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            more = dot(error, w.to(KIND), more, PRECISION, WIDEN)
            tl.store(at, more.to(d_states.dtype.element_ty), mask=mask)


@triton.jit
def inside_rows(
    states,
    weight,
    bias,
    ids,
    starts,
    slots,
    place,
    borders,
    tiles,
    weights,
    nll,
    log_mass,
    hits,
    d_states,
    n_group,
    n_single,
    width,
    HITS: tl.constexpr,
    KEEP: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Compute the losses of a tile of rows of one group; with KEEP add the gradient of their states."""
    # Long because a kernel names every pointer, one a line.
    group, skipped = group_of_tile(tiles, tl.program_id(0), BINS, ROWS)
    if group >= n_group:
        return
    sorted_row = tl.load(borders + group) + skipped + tl.arange(0, ROWS)
    there = sorted_row < tl.load(borders + group + 1)
    row = tl.load(place + sorted_row, mask=there, other=0)
    own = tl.load(slots + row, mask=there, other=0)
    first = tl.load(starts + group) + n_single
    size = tl.load(starts + group + 1) + n_single - first
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    hit = tl.full((ROWS,), float("-inf"), tl.float32)
    best = tl.zeros((ROWS,), tl.int32)
    for start in range(0, size, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        token = tl.load(ids + first + slot, mask=slot < size, other=-1).to(tl.int64)
        logits = _logits(
            states, weight, bias, row, there, token, token >= 0, width, KIND, PRECISION, WIDEN, ROWS, SLOTS, WIDTH
        )
        largest = tl.max(logits, 1)
        if HITS:
            earliest = tl.min(tl.where(logits == largest[:, None], slot[None, :], size + SLOTS), 1)
            best = tl.where(largest > top, earliest, best)
        larger = tl.maximum(top, largest)
        mass = mass * tl.exp(top - larger) + tl.sum(tl.exp(logits - larger[:, None]), 1)
        top = larger
        hit = tl.maximum(hit, tl.max(tl.where(slot[None, :] == own[:, None], logits, float("-inf")), 1))
    total = top + tl.log(mass)
    tl.store(nll + row, total - hit, mask=there)
    tl.store(log_mass + row, total, mask=there)
    if HITS:
        tl.store(hits + row, best == own, mask=there)
    if KEEP:
        scale = there.to(tl.float32)
        if WEIGHTED:
            scale = tl.load(weights + row, mask=there, other=0.0)
        # fmt: off
        _add_to_states(
            states, weight, bias, ids, d_states, row, there, own, total, scale, first, size, width,
            ROWS, SLOTS, WIDTH, KIND, PRECISION, WIDEN,
        )
        # fmt: on


@triton.jit
def _sum_rows(
    states,
    weight,
    bias,
    slots,
    place,
    log_mass,
    weights,
    token,
    slot,
    d,
    begin,
    last,
    width,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Return the gradients of some tokens of a group: (SLOTS, WIDTH) of their rows, and (SLOTS,) of their biases."""
    real = token >= 0
    inside = d < width
    total = tl.zeros((SLOTS, WIDTH), tl.float32)
    shifts = tl.zeros((SLOTS,), tl.float32)
    for start in range(begin, last, ROWS):
        sorted_row = start + tl.arange(0, ROWS)
        there = sorted_row < last
        row = tl.load(place + sorted_row, mask=there, other=0)
        logits = _logits(
            states, weight, bias, row, there, token, real, width, KIND, PRECISION, WIDEN, ROWS, SLOTS, WIDTH
        )
        own = tl.load(slots + row, mask=there, other=0)
        mass = tl.load(log_mass + row, mask=there, other=0.0)
        scale = there.to(tl.float32)
        if WEIGHTED:
            scale = tl.load(weights + row, mask=there, other=0.0)
        error = tl.exp(logits - mass[:, None]) - (slot[None, :] == own[:, None]).to(tl.float32)
        error = tl.where(real[None, :], error * scale[:, None], 0.0).to(KIND)
        h = tl.load(
            states + row[:, None].to(tl.int64) * width + d[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        total = dot(tl.trans(error), h.to(KIND), total, PRECISION, WIDEN)
        shifts += tl.sum(error.to(tl.float32), 0)
    return total, shifts


@triton.jit
def table_rows(
    states,
    weight,
    bias,
    ids,
    starts,
    slots,
    place,
    borders,
    log_mass,
    work,
    weights,
    whole,
    divisor,
    d_columns,
    d_shift,
    parts,
    d_weight,
    d_bias,
    d_group_bias,
    n_single,
    n_column,
    width,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Write the gradient of some tokens of one group, or of the shortlist: some columns of their rows, and biases."""
    # Long because a kernel names every pointer, one a line.
    group = tl.load(work + 3 * tl.program_id(0))
    first = tl.load(work + 3 * tl.program_id(0) + 1)
    count = tl.load(work + 3 * tl.program_id(0) + 2)
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = d < width
    member = tl.arange(0, SLOTS)
    token = tl.load(ids + first + member, mask=member < count, other=-1).to(tl.int64)
    real = token >= 0
    total = tl.zeros((SLOTS, WIDTH), tl.float32)
    shifts = tl.zeros((SLOTS,), tl.float32)
    factor = 1.0
    if SCALED:
        factor = tl.load(whole).to(tl.float32) / tl.load(divisor)
    if group < 0:
        for split in range(SPLITS):
            place_of = (split * n_column + first + member).to(tl.int64)
            total += tl.load(
                d_columns + place_of[:, None] * width + d[None, :], mask=real[:, None] & inside[None, :], other=0.0
            )
            shifts += tl.load(d_shift + place_of, mask=real, other=0.0)
    else:
        slot = first - n_single - tl.load(starts + group) + member
        last = tl.load(borders + group + 1)
        begin = tl.load(borders + group)
        # fmt: off
        total, shifts = _sum_rows(
            states, weight, bias, slots, place, log_mass, weights, token, slot, d, begin, last, width,
            WEIGHTED, ROWS, SLOTS, WIDTH, KIND, PRECISION, WIDEN,
        )
        # fmt: on
        if n_single + group < n_column:
            mean = tl.zeros((WIDTH,), tl.float32)
            group_shift = tl.zeros((), tl.float32)
            for split in range(SPLITS):
                column = (split * n_column + n_single + group).to(tl.int64)
                mean += tl.load(d_columns + column * width + d, mask=inside, other=0.0)
                group_shift += tl.load(d_shift + column)
            part = tl.load(parts + first - n_single + member, mask=real, other=0.0)
            total += part[:, None] * mean[None, :]
            if (first - n_single == tl.load(starts + group)) & (tl.program_id(1) == 0):
                tl.store(d_group_bias + group, (group_shift * factor).to(d_group_bias.dtype.element_ty))
    at = d_weight + token[:, None] * width + d[None, :]
    tl.store(at, (total * factor).to(d_weight.dtype.element_ty), mask=real[:, None] & inside[None, :])
    if tl.program_id(1) == 0:
        tl.store(d_bias + token, (shifts * factor).to(d_bias.dtype.element_ty), mask=real)
