"""Sizes of tiles, rows cut into tiles of one group each, and the matrix product that all kernels use.

The number of tiles is known on the device alone. So as many programs start as there can be tiles, and those without a
tile end at once.

Letters: N tokens, G groups, S slots per group, T tiles.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.losses.in_group import sort_by_group

LEAST = 16
"""Smallest size that `tl.dot` takes, on every side."""


@dataclass(frozen=True, slots=True)
class RowTile:
    """The part of the logits that one program holds: all those of some rows."""

    rows: int
    slots: int  # A power of 2, S or more
    width: int
    """Columns of the states at once: fewer beside many slots, for the shared memory of the smallest GPU (99 KiB)."""
    warps: int

    @property
    def options(self) -> dict[str, int]:
        """Return the sizes as arguments of a kernel's launch."""
        sizes = {"ROWS": self.rows, "SLOTS": self.slots, "WIDTH": self.width}
        return sizes | {"num_warps": self.warps, "num_stages": 2}


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows sorted by group, in tiles of at most `rows` of one group."""

    place: Tensor  # (N,) int64, the order of the rows by group, those of no group last
    starts: Tensor  # (G,) int32, the first sorted row of each group
    ends: Tensor  # (G,) int32, the one after its last
    group: Tensor  # (T,) int64, the group of each tile, G for those that are none
    first: Tensor  # (T,) int32, its first sorted row


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


def row_tile(n_slot: int, numbers: int) -> RowTile:
    """Return the tile for S slots that holds about `numbers` logits."""
    slots = max(LEAST, triton.next_power_of_2(n_slot))
    rows = max(LEAST, min(64, numbers // slots))
    return RowTile(rows, slots, 32 if slots <= 512 else 16, 8 if rows * slots >= 8192 else 4)


def product_options(dtype: torch.dtype) -> dict[str, object]:
    """Return the constants of `dot`: fp32 is exact, as in torch, and TF32 only where torch is set to it."""
    exact = torch.get_float32_matmul_precision() == "highest"
    interpreted = triton.knobs.runtime.interpret and dtype is torch.bfloat16  # its arrays have no bf16
    return {"PRECISION": "ieee" if exact else "tf32", "WIDEN": bool(interpreted)}


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Return the context of launches for tensors on `device`: triton launches on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Return a @ b + total, summed in fp32; WIDEN gives the same from factors turned into fp32 first."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
