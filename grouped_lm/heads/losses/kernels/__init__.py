"""Triton kernels of the slowest parts of heads, for NVIDIA GPUs. Each equals lines of torch, which run elsewhere.

Triton is imported with the first kernel. If TRITON_INTERPRET=1 was set before, kernels also run on a CPU, in triton's
interpreter, where they are asked for: the tests compare them with the lines of torch there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from grouped_lm.config import KERNELS, check_choice
from grouped_lm.errors import ConfigError

MAX_GROUPS = 4096
"""Largest number of groups: each program finds its own among them."""
MAX_SLOTS = 1024
"""Largest number of slots of a group that a program of `grouped` can hold. Larger groups use the lines of torch."""
TABLE_TOKENS = 64
"""Rows of the table whose gradient one program writes."""
CAPABILITY = (7, 5)
"""Compute capability of the oldest GPUs for which triton makes code; those below 8.0 have no bf16."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HAS_TRITON = find_spec("triton") is not None
"""Whether triton is installed; it comes with torch's CUDA builds for Linux."""
planned: list[str] = []
"""Names of the kernels that were launched on fake tensors, which do nothing."""
_mode = "auto"


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability; (8, 0) for the interpreter on a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


def runs_on(device: torch.device) -> bool:
    """Return whether kernels run on `device`; on a CPU they do in triton's interpreter, where they are asked for.

    In mode `plan` they "run" on fake tensors: buffers are made and launches are counted.
    """
    if _mode == "plan":
        return HAS_TRITON
    if device.type == "cpu":
        return _mode == "on" and HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
    return _mode != "off" and device.type == "cuda" and HAS_TRITON and capability(device) >= CAPABILITY


def chosen(device: torch.device, dtype: torch.dtype, n_group: int) -> bool:
    """Return whether kernels are used for G groups and matrix products in `dtype`, instead of the lines of torch."""
    if not 0 < n_group <= MAX_GROUPS or dtype not in DTYPES or not runs_on(device):
        return False
    return dtype is not torch.bfloat16 or capability(device) >= (8, 0)


def set_mode(mode: str, device: torch.device) -> None:
    """Use kernels where they run (`auto`), nowhere (`off`), or on `device` or not at all (`on`).

    Raises:
        ConfigError: an unknown mode, or `on` for a device without kernels.
    """
    global _mode
    check_choice("train.kernels", mode, KERNELS)
    before, _mode = _mode, mode
    if mode == "on" and not runs_on(device):
        _mode = before
        reason = f"{device.type} is no CUDA device of compute capability 7.5 or more"
        raise ConfigError(f"train.kernels=on needs one, {reason}: train.kernels=auto takes kernels where they run")


@contextmanager
def mode(name: str) -> Iterator[None]:
    """Use kernels as `set_mode` says inside, to measure or to test them."""
    global _mode
    before, _mode = _mode, name
    try:
        yield
    finally:
        _mode = before
