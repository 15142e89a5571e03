"""Rows sorted by group and cut into tiles of one group each.

How many tiles there are is known on the device alone: as many programs start as there can be, and those without a tile
end at once.

Letters: N tokens, G groups, T tiles.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grouped_lm.heads.losses.in_group_device import sort_by_group


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows sorted by group, in tiles of at most `rows` of one group."""

    place: Tensor
    """(N,) int64, the order of the rows by group, those of no group last."""
    starts: Tensor
    """(G,) int32, the first sorted row of each group."""
    ends: Tensor
    """(G,) int32, the one after its last."""
    group: Tensor
    """(T,) int64, the group of each tile, G for those that are none."""
    first: Tensor
    """(T,) int32, its first sorted row."""


def cut_into_tiles(groups: Tensor, n_group: int, rows: int) -> Tiles:
    """Sort (N,) groups in [0, G), or -1, and cut them into tiles; the host waits for nothing.

    There are at most N / rows full tiles, and for each group one that is not.
    """
    place, _, _, ends = sort_by_group(groups, n_group)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    tile_ends = ((ends - starts + rows - 1) // rows).cumsum(0, dtype=torch.int32)
    tile = torch.arange(groups.shape[0] // rows + n_group, device=groups.device, dtype=torch.int32)
    group = torch.searchsorted(tile_ends, tile, right=True)
    known = group.clamp_max(n_group - 1)
    before = torch.cat([tile_ends.new_zeros(1), tile_ends[:-1]])[known]
    return Tiles(place, starts, ends, group, starts[known] + (tile - before) * rows)
