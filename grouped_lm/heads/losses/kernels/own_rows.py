"""The softmax inside groups whose tokens have weight rows of their own, gathered from the table as they are needed.

It equals `forward_by_borders`. That needs a copy of the whole table in each pass, in the order of the groups and the
type of the products. No sum is made by atomic additions, so the bits are the same every time.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.losses.in_group import Inputs, Places
from grouped_lm.heads.losses.kernels.tiles import Tiles, cut_into_tiles, dot, launching_on, product_options, row_tile

TILE = 8192
"""Logits of a program: 32 rows at S = 224. They share the gathered weight rows."""
SLOT_TILE = 64
"""Slots of a tile of the weight's gradient."""
WIDTH_TILE = 64
"""Columns of a tile of the gradients of states and weight."""


def forward(inputs: Inputs, places: Places, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (N,) nats and (N,) hits, as `forward_by_borders` does.

    S is at most `MAX_SLOTS`.
    """
    hidden, (members, groups, _) = inputs[0], places
    nll = hidden.new_zeros(groups.shape[0], dtype=torch.float32)
    hits = torch.zeros_like(groups, dtype=torch.bool)
    if members.numel():
        tiles = cut_into_tiles(groups, members.shape[0], row_tile(members.shape[1], TILE).rows)
        with launching_on(hidden.device):
            _softmax(inputs, places, tiles, dtype, nll=nll, hits=hits)
    return nll, hits


def backward(d_nll: Tensor, inputs: Inputs, places: Places, dtype: torch.dtype) -> Inputs:
    """Return the (N, D), (V, D) and (V,) gradients for (N,) d_nll, as `backward_by_borders` does.

    The (N, S) gradients of the logits live in between, in the type of the products.
    """
    (hidden, weight, bias), (members, groups, _) = inputs, places
    (n_rows, width), (n_group, n_slot) = hidden.shape, members.shape
    hidden, weight = hidden.contiguous(), weight.contiguous()
    d_hidden, d_weight, d_bias = torch.zeros_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
    if not members.numel() or not n_rows:
        return d_hidden, d_weight, d_bias
    rows, columns = row_tile(n_slot, TILE).rows, triton.cdiv(width, WIDTH_TILE)
    tiles = cut_into_tiles(groups, n_group, rows)
    d_logits = hidden.new_empty((n_rows, n_slot), dtype=dtype)
    options = product_options(dtype) | {"SLOTS": SLOT_TILE, "WIDTH": WIDTH_TILE}
    table, shape = (d_logits, members, tiles.place), (width, n_slot)
    with launching_on(hidden.device):
        _softmax((hidden, weight, bias), places, tiles, dtype, d_nll=d_nll.contiguous(), d_logits=d_logits)
        _weight_gradient[(n_group, triton.cdiv(n_slot, SLOT_TILE), columns)](
            hidden, *table, tiles.starts, tiles.ends, d_weight, d_bias, *shape, ROWS=max(rows, 32), **options
        )
        _state_gradient[(tiles.group.shape[0], columns)](
            weight, *table, tiles.ends, tiles.group, tiles.first, d_hidden, n_group, *shape, ROWS=rows, **options
        )
    return d_hidden, d_weight, d_bias


def _softmax(inputs: Inputs, places: Places, tiles: Tiles, dtype: torch.dtype, **given: Tensor) -> None:
    """Fill in (N,) `nll` and `hits` of rows that have a group; or, given `d_nll`, (N, S) `d_logits` by sorted row."""
    (hidden, weight, bias), (members, _, slots) = inputs, places
    unused = dict.fromkeys(("nll", "hits", "d_nll"), hidden)
    zeros = torch.empty((), dtype=dtype, device=hidden.device)  # the kernel takes the type of its products from it
    outputs = unused | {"d_logits": zeros} | given
    tensors = hidden.contiguous(), weight.contiguous(), bias, members, slots, tiles.place, tiles.ends
    options = row_tile(members.shape[1], TILE).options | product_options(dtype)
    _softmax_rows[(tiles.group.shape[0],)](
        *tensors,
        tiles.group,
        tiles.first,
        *outputs.values(),
        members.shape[0],
        hidden.shape[1],
        members.shape[1],
        BACKWARD="d_logits" in given,
        **options,
    )


@triton.jit
def _softmax_rows(
    hidden,
    weight,
    bias,
    members,
    slots,
    place,
    ends,
    tile_group,
    tile_first,
    nll,
    hits,
    d_nll,
    d_logits,
    n_group,
    width,
    n_slot,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    group = tl.load(tile_group + tl.program_id(0))
    if group >= n_group:
        return
    sorted_row = tl.load(tile_first + tl.program_id(0)) + tl.arange(0, ROWS)
    there = sorted_row < tl.load(ends + group)
    row = tl.load(place + sorted_row, mask=there, other=0)
    slot = tl.arange(0, SLOTS)
    ids = tl.load(members + group * n_slot + slot, mask=slot < n_slot, other=-1)
    real = ids >= 0

    logits = tl.zeros((ROWS, SLOTS), tl.float32)
    for start in range(0, width, WIDTH):
        column = start + tl.arange(0, WIDTH)
        inside = column < width
        h = tl.load(hidden + row[:, None] * width + column, mask=there[:, None] & inside, other=0.0)
        w = tl.load(weight + ids * width + column[:, None], mask=real & inside[:, None], other=0.0)
        kind = d_logits.dtype.element_ty
        logits = dot(h.to(kind), w.to(kind), logits, PRECISION, WIDEN)
    shift = tl.load(bias + ids, mask=real, other=float("-inf")).to(tl.float32)
    logits += shift

    target = tl.load(slots + row, mask=there, other=0)
    hit = slot == target[:, None]
    largest = tl.max(logits, 1)
    powers = tl.exp(logits - largest[:, None])
    total = tl.sum(powers, 1)
    if BACKWARD:
        scale = tl.load(d_nll + row, mask=there, other=0.0).to(tl.float32)
        error = (powers / total[:, None] - hit.to(tl.float32)) * scale[:, None]
        to = d_logits + sorted_row[:, None].to(tl.int64) * n_slot + slot
        tl.store(to, error.to(d_logits.dtype.element_ty), mask=there[:, None] & (slot < n_slot))
    else:
        value = tl.log(total) + largest - tl.sum(tl.where(hit, logits, 0.0), 1)
        tl.store(nll + row, value, mask=there)
        first = tl.min(tl.where(logits == largest[:, None], slot, SLOTS), 1)
        tl.store(hits + row, first == target, mask=there)


@triton.jit
def _weight_gradient(
    hidden,
    d_logits,
    members,
    place,
    starts,
    ends,
    d_weight,
    d_bias,
    width,
    n_slot,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    group, end = tl.program_id(0), tl.load(ends + tl.program_id(0))
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = column < width
    ids = tl.load(members + group * n_slot + slot, mask=slot < n_slot, other=-1).to(tl.int64)
    total = tl.zeros((SLOTS, WIDTH), tl.float32)
    shifts = tl.zeros((SLOTS,), tl.float32)
    for start in range(tl.load(starts + group), end, ROWS):
        sorted_row = start + tl.arange(0, ROWS)
        there = sorted_row < end
        row = tl.load(place + sorted_row, mask=there, other=0)
        error = tl.load(
            d_logits + sorted_row.to(tl.int64) * n_slot + slot[:, None],
            mask=there & (slot < n_slot)[:, None],
            other=0.0,
        )
        h = tl.load(hidden + row[:, None] * width + column, mask=there[:, None] & inside, other=0.0)
        total = dot(error, h.to(error.dtype), total, PRECISION, WIDEN)
        shifts += tl.sum(error.to(tl.float32), 1)
    real = ids >= 0
    to = d_weight + ids[:, None] * width + column
    tl.store(to, total.to(d_weight.dtype.element_ty), mask=real[:, None] & inside)
    if tl.program_id(2) == 0:
        tl.store(d_bias + ids, shifts.to(d_bias.dtype.element_ty), mask=real)


@triton.jit
def _state_gradient(
    weight,
    d_logits,
    members,
    place,
    ends,
    tile_group,
    tile_first,
    d_hidden,
    n_group,
    width,
    n_slot,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    group = tl.load(tile_group + tl.program_id(0))
    if group >= n_group:
        return
    sorted_row = tl.load(tile_first + tl.program_id(0)) + tl.arange(0, ROWS)
    there = sorted_row < tl.load(ends + group)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < width
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, n_slot, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        ids = tl.load(members + group * n_slot + slot, mask=slot < n_slot, other=-1)
        error = tl.load(
            d_logits + sorted_row[:, None].to(tl.int64) * n_slot + slot, mask=there[:, None] & (ids >= 0), other=0.0
        )
        w = tl.load(weight + ids[:, None] * width + column, mask=(ids >= 0)[:, None] & inside, other=0.0)
        total = dot(error, w.to(error.dtype), total, PRECISION, WIDEN)
    row = tl.load(place + sorted_row, mask=there, other=0)
    to = d_hidden + row[:, None] * width + column
    tl.store(to, total.to(d_hidden.dtype.element_ty), mask=there[:, None] & inside)
