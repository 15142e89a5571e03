"""Rows sorted by the group of their targets: a stable counting sort in three launches, without a host that waits.

It equals `torch.argsort(groups, stable=True)` and the borders of the groups in that order.

Letters: N tokens, V vocabulary, K shortlist, G groups, B blocks of rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.losses.kernels.tiles import TILE_ROWS, launch

BLOCK_ROWS = 128
"""Rows of a program. Each is compared with all others of its block; 256 spill 5 KB a thread."""
SCAN_NUMBERS = 4096
"""Counts that the scan holds at once."""


@dataclass(frozen=True, slots=True)
class Route:
    """The places of N targets, and their rows sorted by group; all int32."""

    classes: Tensor  # (N,) class, K + g in group g; -1 where ignored, -2 for ids outside [0, V)
    slots: Tensor  # (N,) place in the group
    place: Tensor  # (N,) the rows, sorted by group; those of no group last
    borders: Tensor  # (G + 2 or more,) first sorted row of each group
    tiles: Tensor  # (G + 2 or more,) number of tiles of `TILE_ROWS` rows up to each group, its own included


def n_bins(n_group: int) -> int:
    """Return the power of 2 that holds G groups, the rows of no group, and those behind the last row."""
    return triton.next_power_of_2(n_group + 2)


def route(targets: Tensor, tables: tuple[Tensor, Tensor] | None, n_single: int, n_group: int) -> Route:
    """Return the route of (N,) int64 targets, N >= 1, from the (V,) int32 classes and slots of all tokens.

    Without `tables` the targets are groups in [0, G), or negative, and `slots` is left empty.
    """
    n_rows, n_bin = targets.shape[0], n_bins(n_group)
    n_block = triton.cdiv(n_rows, BLOCK_ROWS)

    def ints(*shape: int) -> Tensor:
        return targets.new_empty(shape, dtype=torch.int32)

    made = Route(ints(n_rows), ints(n_rows if tables else 0), ints(n_rows), ints(n_bin), ints(n_bin))
    counts = ints(n_block, n_bin)
    token_class, token_slot = tables or (made.classes, made.slots)
    sizes = n_rows, n_single, n_group, token_class.shape[0]
    block = {"ROWS": BLOCK_ROWS, "BINS": n_bin}
    given = targets, token_class, token_slot, made.classes, made.slots, counts
    launch(count_rows, (n_block,), *given, *sizes, LOOK_UP=tables is not None, **block)
    bins = min(n_bin, 64)
    at_once = {"BINS": n_bin, "AT_ONCE": bins, "BLOCKS": SCAN_NUMBERS // bins}
    launch(scan_counts, (1,), counts, made.borders, made.tiles, n_block, n_group, TILE=TILE_ROWS, **at_once)
    launch(place_rows, (n_block,), made.classes, counts, made.borders, made.place, n_rows, n_single, n_group, **block)
    return made


@triton.jit
def count_rows(
    targets,
    token_class,
    token_slot,
    classes,
    slots,
    counts,
    n_rows,
    n_single,
    n_group,
    vocab_size,
    LOOK_UP: tl.constexpr,
    ROWS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Find the class and the slot of each row; count the rows of each group in this block."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < n_rows
    target = tl.load(targets + row, mask=there, other=-100)
    own = target.to(tl.int32)
    if LOOK_UP:
        known = (target >= 0) & (target < vocab_size)
        own = tl.where(target == -100, -1, -2)
        own = tl.where(known, tl.load(token_class + target, mask=known, other=0), own)
        tl.store(slots + row, tl.load(token_slot + target, mask=known, other=0), mask=there)
    tl.store(classes + row, own, mask=there)
    group = tl.where(own >= n_single, own - n_single, n_group)
    group = tl.where(there, group, n_group + 1)
    tl.store(counts + tl.program_id(0) * BINS + tl.arange(0, BINS), tl.histogram(group, BINS))


@triton.jit
def scan_counts(
    counts,
    borders,
    tiles,
    n_block,
    n_group,
    TILE: tl.constexpr,
    BINS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Turn (B, bins) counts into the number of rows in earlier blocks; find the borders of groups and tiles."""
    rows = tl.zeros((), tl.int32)
    n_tile = tl.zeros((), tl.int32)
    for first in range(0, BINS, AT_ONCE):
        group = first + tl.arange(0, AT_ONCE)
        total = tl.zeros((AT_ONCE,), tl.int32)
        for start in range(0, n_block, BLOCKS):
            block = start + tl.arange(0, BLOCKS)
            at = counts + block[:, None] * BINS + group[None, :]
            count = tl.load(at, mask=(block < n_block)[:, None], other=0)
            tl.store(at, total[None, :] + tl.cumsum(count, 0) - count, mask=(block < n_block)[:, None])
            total += tl.sum(count, 0)
        tl.store(borders + group, rows + tl.cumsum(total, 0) - total)
        own_tiles = tl.where(group < n_group, (total + TILE - 1) // TILE, 0)
        tl.store(tiles + group, n_tile + tl.cumsum(own_tiles, 0))
        rows += tl.sum(total, 0)
        n_tile += tl.sum(own_tiles, 0)


@triton.jit
def place_rows(classes, counts, borders, place, n_rows, n_single, n_group, ROWS: tl.constexpr, BINS: tl.constexpr):
    """Write each row to its place: behind earlier groups, earlier blocks and earlier rows of this block."""
    lane = tl.arange(0, ROWS)
    row = tl.program_id(0) * ROWS + lane
    there = row < n_rows
    own = tl.load(classes + row, mask=there, other=-1)
    group = tl.where(own >= n_single, own - n_single, n_group)
    earlier = (group[:, None] == group[None, :]) & (lane[None, :] < lane[:, None])
    at = tl.load(borders + group, mask=there, other=0)
    at += tl.load(counts + tl.program_id(0) * BINS + group, mask=there, other=0)
    tl.store(place + at + tl.sum(earlier.to(tl.int32), 1), row, mask=there)


@triton.jit
def group_of_tile(tiles, tile, BINS: tl.constexpr, TILE: tl.constexpr):
    """Return the group of a tile, G or more where there is none, and the tile's first row among those of the group."""
    group = tl.arange(0, BINS)
    ends = tl.load(tiles + group)
    own = tl.sum((ends <= tile).to(tl.int32), 0)
    before = tl.max(tl.where(group < own, ends, 0), 0)
    return own, (tile - before) * TILE
