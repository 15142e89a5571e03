"""Peak speed and memory of devices, and bandwidth of the links between them; the CPU is measured."""

import contextlib
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import yaml

from grouped_lm.errors import ConfigError
from grouped_lm.measure.memory import GIB
from grouped_lm.measure.throughput import measure_copy_bytes_per_sec, measure_gemm_flops_per_sec

CGROUP = Path("/sys/fs/cgroup")
"""Folder with the memory limit of a container."""
UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": GIB, "TIB": 2**40}
UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Device:
    """Peak speed and memory. Matrix products in fp32 run without TF32, which torch does not use by default."""

    name: str
    fp32_flops_per_sec: float
    bf16_flops_per_sec: float
    """Dense, fp32 accumulation."""
    fp16_flops_per_sec: float
    """As for bf16."""
    bytes_per_sec: float
    """Bandwidth of its memory."""
    memory_bytes: int
    source: str

    def flops_per_sec(self, dtype: str) -> float:
        """Return the peak for matrix products in `float32`, `bfloat16` or `float16`."""
        peaks = {"bfloat16": self.bf16_flops_per_sec, "float16": self.fp16_flops_per_sec}
        return peaks.get(dtype, self.fp32_flops_per_sec)

    def shared_by(self, processes: int) -> "Device":
        """Return the device as one of several processes on it sees it, with an equal part of everything."""
        return dataclasses.replace(
            self,
            fp32_flops_per_sec=self.fp32_flops_per_sec / processes,
            bf16_flops_per_sec=self.bf16_flops_per_sec / processes,
            fp16_flops_per_sec=self.fp16_flops_per_sec / processes,
            bytes_per_sec=self.bytes_per_sec / processes,
            memory_bytes=self.memory_bytes // processes,
            source=f"{self.source}, shared by {processes} processes",
        )


@dataclass(frozen=True)
class Interconnect:
    """The slowest link of the ring of all devices; each device has a link of its own."""

    name: str
    bytes_per_sec: float
    """One direction."""
    source: str
    reduce_scatter_passes: int = 1
    """A reduce-scatter sends (W - 1)/W of a buffer so many times."""


KNOWN = yaml.safe_load(files("grouped_lm.measure").joinpath("devices.yaml").read_text(encoding="utf-8"))
DEVICES = {
    name: Device(name, fp32 * 1e12, bf16 * 1e12, fp16 * 1e12, giga * 1e9, gib * GIB, family["source"])
    for family in KNOWN["devices"]
    for name, (fp32, bf16, fp16, giga, gib) in family["cards"].items()
}
MAKERS = re.compile(r"^(nvidia|tesla|geforce|apple)+")
EXAMPLE = "tflops=40,gbps=500,gib=12"
INTERCONNECTS = {name: Interconnect(name, **values) for name, values in KNOWN["interconnects"].items()}


def find_device(name: str, dtype: str) -> Device:
    """Return the device with that name, such as `rtx3060` or `GeForce RTX 3060`; the CPU is measured with `dtype`.

    `tflops=40,gbps=500,gib=12` is a device with these figures: peak TFLOPS in the dtype of the run, GB/s and GiB of its
    memory. ConfigError: the name is unknown, or a figure is missing.
    """
    short = MAKERS.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))
    for known in (name, short, f"rtx{short}"):
        if known in DEVICES:
            return DEVICES[known]
    if "=" in name:
        return own_device(name)
    if short != "cpu":
        near = did_you_mean(short, [*DEVICES, "cpu"]) or f"; there are {', '.join(DEVICES)}, cpu."
        raise ConfigError(f"--device {name} is not known{near} Your own figures: --device {EXAMPLE}")
    cpu = torch.device("cpu")
    flops = measure_gemm_flops_per_sec(cpu, getattr(torch, dtype))
    source = f"measured here: a matrix product and a copy, CPU threads: {torch.get_num_threads()}"
    return Device("cpu", flops, flops, flops, measure_copy_bytes_per_sec(cpu), machine_memory(), source)


def own_device(text: str) -> Device:
    """Return a device with the figures of a text such as `tflops=40,gbps=500,gib=12`; ConfigError if one is missing."""
    given = dict(part.partition("=")[::2] for part in text.replace(" ", "").lower().split(","))
    figures = {}
    for key, value in given.items():
        with contextlib.suppress(ValueError):
            figures[key] = float(value)
    if figures.keys() != {"tflops", "gbps", "gib"} or not all(0 < x < math.inf for x in figures.values()):
        raise ConfigError(f"--device needs tflops=, gbps= and gib=, each above 0, such as {EXAMPLE}, got {text!r}")
    flops = 1e12 * figures["tflops"]
    return Device(text, flops, flops, flops, 1e9 * figures["gbps"], int(figures["gib"] * GIB), "as given")


def find_interconnect(name: str, on_cpu: bool = False) -> Interconnect:
    """Return the interconnect with that name, or with that bandwidth per second, such as 25GB.

    Between CPUs gloo uses an all-reduce for a reduce-scatter. ConfigError: the text is neither a name nor a size.
    """
    passes = 2 if on_cpu else 1
    if name in INTERCONNECTS:
        return dataclasses.replace(INTERCONNECTS[name], reduce_scatter_passes=passes)
    try:
        return Interconnect(name, parse_bytes(name), "as given", passes)
    except ConfigError as error:
        raise ConfigError(
            f"--interconnect must be one of {', '.join(INTERCONNECTS)}, or bytes per second for each device such as "
            f"25GB, got {name!r}{did_you_mean(name, INTERCONNECTS)}"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" with the most similar known name, or ""."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def container_memory() -> tuple[int, int] | None:
    """Return the memory limit of this container and the bytes in use (cgroup v2); None without a limit.

    Cached pages of files (`inactive_file`) do not count, because the kernel can free them at any time.
    """
    try:
        limit = int((CGROUP / "memory.max").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        held = int((CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None
    return limit, max(0, held)


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of its container if that has less."""
    physical, container = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), container_memory()
    return physical if container is None else min(physical, container[0])


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as `8GiB`, `500 MB` or `1e9`, at least one; ConfigError for other texts."""
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:[eE]\d{1,2})?)\s*([A-Za-z]*)\s*", text)
    size = float(found[1]) * UNITS.get(found[2].upper(), 0) if found else 0
    if size < 1:
        raise ConfigError(f"--memory must be a size above 0 such as 8GiB, 500MiB or 16GB, got {text!r}")
    return int(size)
