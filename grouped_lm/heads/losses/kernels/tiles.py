"""Sizes of tiles, and the product that all kernels are made of.

Letters: S slots per group.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

LEAST = 16
"""What `tl.dot` asks for at least, on every side."""


@dataclass(frozen=True, slots=True)
class RowTile:
    """What one program holds: all logits of some rows."""

    rows: int
    slots: int
    """A power of 2, S or more."""
    width: int
    """Columns of the states at once: fewer beside many slots, for the shared memory of the smallest GPU (99 KiB)."""
    warps: int


def row_tile(n_slot: int, numbers: int) -> RowTile:
    """Return the tile for S slots that holds about `numbers` logits."""
    slots = max(LEAST, triton.next_power_of_2(n_slot))
    rows = max(LEAST, min(64, numbers // slots))
    return RowTile(rows, slots, 32 if slots <= 512 else 16, 8 if rows * slots >= 8192 else 4)


def product_options(dtype: torch.dtype) -> dict[str, object]:
    """Return what `dot` is told: fp32 as torch's own products have it, with TF32 only where that was asked for."""
    exact = torch.get_float32_matmul_precision() == "highest"
    interpreted = triton.knobs.runtime.interpret and dtype is torch.bfloat16  # its arrays know no bf16
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
