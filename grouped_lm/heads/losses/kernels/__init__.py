"""Triton kernels of the hot loops of heads, for NVIDIA GPUs: each equals a line of torch, which runs everywhere else.

Nothing here imports triton before a kernel is wanted. On a CPU they run in triton's interpreter, if TRITON_INTERPRET=1
was set before triton was imported: so the tests hold them against those lines.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

MAX_SLOTS = 1024
"""Slots of one group that a program can hold at once; larger groups take the plain way."""
CAPABILITY = (8, 0)
"""Of the oldest GPUs on which tiles of these sizes fit."""
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
    """Return whether a kernel takes the place of the plain line.

    Args:
        device: of the states.
        dtype: of the matrix products.
        n_slot: S.
        repeats: whether the kernel gives the same bits every time; one that does not gives way where
            `torch.use_deterministic_algorithms` asks for that.
    """
    exact = repeats or not torch.are_deterministic_algorithms_enabled()
    return not _left_out and exact and n_slot <= MAX_SLOTS and dtype in DTYPES and runs_on(device)


@contextmanager
def without() -> Iterator[None]:
    """Choose no kernel inside: to measure what they gain."""
    global _left_out
    before, _left_out = _left_out, True
    try:
        yield
    finally:
        _left_out = before
