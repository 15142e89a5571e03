"""Triton kernels of the slowest parts of heads, for NVIDIA GPUs. Each equals lines of torch, which run elsewhere.

Triton is imported with the first kernel. If TRITON_INTERPRET=1 was set before, kernels also run on a CPU, in triton's
interpreter: the tests compare them with the lines of torch there.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

MAX_SLOTS = 1024
"""Largest number of slots of one group that a program can hold. Larger groups use the lines of torch."""
CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs on which tiles of these sizes fit."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_left_out = False


@functools.cache
def has_triton() -> bool:
    """Return whether triton is installed; it comes with torch's CUDA builds for Linux."""
    return find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Return whether kernels run on `device`."""
    return device.type == "cuda" and has_triton() and torch.cuda.get_device_capability(device) >= CAPABILITY


def chosen(device: torch.device, dtype: torch.dtype, n_slot: int, *, repeats: bool) -> bool:
    """Return whether a kernel is used for S slots and matrix products in `dtype`, instead of the lines of torch.

    A kernel that does not give the same bits every time (`repeats`) is not used under
    `torch.use_deterministic_algorithms`.
    """
    exact = repeats or not torch.are_deterministic_algorithms_enabled()
    return not _left_out and exact and n_slot <= MAX_SLOTS and dtype in DTYPES and runs_on(device)


@contextmanager
def without() -> Iterator[None]:
    """Use no kernel inside, to measure their gain."""
    global _left_out
    before, _left_out = _left_out, True
    try:
        yield
    finally:
        _left_out = before
