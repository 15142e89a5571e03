"""What a device can do: published peak figures; the CPU is measured, since it is here.

`source` names the figure as its maker publishes it. They were read on pages that repeat the maker's sheets, not on the
sheets themselves.
"""

import dataclasses
import difflib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from grouped_lm.errors import ConfigError
from grouped_lm.measure.throughput import GIB, measure_gemm_flops_per_sec, synchronize

CPU = torch.device("cpu")
CGROUP = Path("/sys/fs/cgroup")
"""Where a container's own limit stands."""
UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": GIB, "TIB": 2**40}
UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Device:
    """Peak figures. Matrix products in fp32 run without TF32, which torch leaves off unless asked."""

    name: str
    fp32_flops_per_sec: float
    bf16_flops_per_sec: float
    """Dense, fp32 accumulation."""
    bytes_per_sec: float
    """Of its memory."""
    memory_bytes: int
    source: str

    def flops_per_sec(self, dtype: str) -> float:
        """Return the peak for matrix products in `float32` or `bfloat16`."""
        return self.bf16_flops_per_sec if dtype == "bfloat16" else self.fp32_flops_per_sec

    def shared_by(self, processes: int) -> "Device":
        """Return what each of several processes on it has: an equal part of everything."""
        return dataclasses.replace(
            self,
            fp32_flops_per_sec=self.fp32_flops_per_sec / processes,
            bf16_flops_per_sec=self.bf16_flops_per_sec / processes,
            bytes_per_sec=self.bytes_per_sec / processes,
            memory_bytes=self.memory_bytes // processes,
            source=f"{self.source}, shared by {processes} processes",
        )


DEVICES = {
    "a100": Device(
        "a100",
        19.5e12,
        312e12,
        1.555e12,
        40 * GIB,
        "NVIDIA A100 Tensor Core GPU data sheet, 40GB SXM: FP32, BFLOAT16 Tensor Core without sparsity, bandwidth",
    ),
    "h100": Device(
        "h100",
        67e12,
        989.4e12,
        3.35e12,
        80 * GIB,
        "NVIDIA H100 Tensor Core GPU data sheet, SXM5: FP32, BFLOAT16 Tensor Core (half the figure with sparsity), "
        "bandwidth",
    ),
    "t4": Device(
        "t4",
        8.1e12,
        8.1e12,
        0.320e12,
        16 * GIB,
        "NVIDIA T4 Tensor Core GPU data sheet: single precision, bandwidth; its tensor cores know no bfloat16, so "
        "that figure is fp32's",
    ),
    "rtx4090": Device(
        "rtx4090",
        82.6e12,
        165.2e12,
        1.008e12,
        24 * GIB,
        "NVIDIA Ada GPU architecture white paper, GeForce RTX 4090: FP32, BF16 Tensor with FP32 accumulate without "
        "sparsity, bandwidth",
    ),
}


def measure_copy_bytes_per_sec(n_bytes: int = 2**26, device: torch.device = CPU) -> float:
    """Return the best of five rates at which a tensor is read and written on `device`, in bytes moved per second."""
    source, target = (torch.zeros(n_bytes // 4, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * n_bytes / best


def container_memory() -> tuple[int, int] | None:
    """Return the bytes that this container may hold and those it holds, by cgroup v2; None where it has no limit.

    File pages that the kernel takes back first (`inactive_file`) are not counted: a corpus that was read leaves them.
    """
    try:
        limit = int((CGROUP / "memory.max").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        held = int((CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None
    return limit, max(0, held)


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or what its container may have of them."""
    physical, container = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), container_memory()
    return physical if container is None else min(physical, container[0])


def find_device(name: str, dtype: str) -> Device:
    """Return the device of that name, the CPU measured for `dtype`.

    Raises:
        ConfigError: an unknown name.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name != "cpu":
        near = difflib.get_close_matches(name.lower(), [*DEVICES, "cpu"], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--device must be one of {', '.join(DEVICES)}, cpu, got {name!r}{hint}")
    flops = measure_gemm_flops_per_sec(torch.device("cpu"), getattr(torch, dtype))
    source = f"measured here: a matrix product and a copy with {torch.get_num_threads()} threads"
    return Device("cpu", flops, flops, measure_copy_bytes_per_sec(), machine_memory(), source)


def parse_bytes(text: str) -> int:
    """Return the bytes that `8GiB`, `500 MB` or `1e9` means.

    Raises:
        ConfigError: no number, an unknown unit, or nothing above 0.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:[eE]\d{1,2})?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS or float(found[1]) * UNITS[found[2].upper()] < 1:
        raise ConfigError(f"--memory must be a size above 0 such as 8GiB, 500MiB or 16GB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])
