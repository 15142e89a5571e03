"""Sizes of tiles by architecture and width, the one place that launches kernels, and their matrix product.

Sizes come from tables and not from measuring on the spot, so a run that is resumed makes the same sums in the same
order.

Letters: N tokens, D width, C columns of the first softmax, S slots per group.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from grouped_lm.heads.losses.kernels import TABLE_TOKENS, planned

LEAST = 16
"""Smallest size that `tl.dot` takes, on every side."""
TILE_ROWS = 16
"""Rows of one group in a program."""
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True, slots=True)
class FirstTile:
    """The part of the first softmax that one program holds: some rows, some columns at a time, all of D."""

    rows: int
    columns: int
    warps: int


FIRST_TILES = {
    # padded width: (bytes of a number: tile); on GPUs with 99 KiB of shared memory a program, then on larger ones
    64: {2: (FirstTile(32, 64, 4), FirstTile(64, 64, 4)), 4: (FirstTile(32, 64, 8), FirstTile(32, 64, 8))},
    128: {2: (FirstTile(32, 64, 8), FirstTile(32, 64, 8)), 4: (FirstTile(32, 32, 8), FirstTile(32, 32, 8))},
    256: {2: (FirstTile(32, 64, 8), FirstTile(32, 64, 8))},
}
SMALL = {(8, 6), (8, 7), (8, 9), (12, 0), (12, 1)}
"""Compute capabilities with 99 KiB (NVIDIA CUDA C++ Programming Guide, "Technical Specifications")."""


def padded(size: int) -> int:
    """Return the power of 2 that holds `size` numbers, at least `LEAST`."""
    return max(LEAST, triton.next_power_of_2(size))


def first_tile(width: int, dtype: torch.dtype, capability: tuple[int, int]) -> FirstTile | None:
    """Return the tile of the first softmax; None where its products are left to cuBLAS.

    That is above width 256 in half precision and 128 in fp32, as a program holds the gradient of its rows; and below
    capability 8.0, for which triton uses no tensor cores.
    """
    tiles = FIRST_TILES.get(max(64, padded(width)), {}).get(dtype.itemsize)
    return None if tiles is None or capability < (8, 0) else tiles[capability not in SMALL]


def slot_step(width: int, capability: tuple[int, int]) -> dict[str, int]:
    """Return the sizes of kernels inside groups, by names of their arguments.

    Below capability 8.0 there are 8 warps: without tensor cores a thread holds more numbers than it has registers.
    """
    sizes = {"ROWS": TILE_ROWS, "SLOTS": TABLE_TOKENS, "WIDTH": min(64, padded(width))}
    return sizes | {"num_warps": 4 if capability >= (8, 0) else 8}


def product_options(dtype: torch.dtype) -> dict[str, Any]:
    """Return the constants of `dot`: fp32 is exact, as in torch, and TF32 only where torch is set to it."""
    exact = torch.get_float32_matmul_precision() == "highest"
    interpreted = triton.knobs.runtime.interpret and dtype is torch.bfloat16  # its arrays have no bf16
    return {"KIND": KINDS[dtype], "PRECISION": "ieee" if exact else "tf32", "WIDEN": bool(interpreted)}


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right in fp32, from factors of one type, by cuBLAS."""
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@contextmanager
def launching_on(device: torch.device) -> Iterator[None]:
    """Launch for tensors on `device`, as triton launches on the current one, and without autocast's types."""
    with (
        torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel; on fake tensors only note it in `planned`.

    Products and sums are fused, since triton's default differs from version to version.
    """
    if isinstance(arguments[0], FakeTensor):
        planned.append(kernel.__name__)
        return
    kernel[grid](*arguments, enable_fp_fusion=True, **options)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Return a @ b + total, summed in fp32; WIDEN gives the same from factors turned into fp32 first."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
