"""Clocks and allocators: tokens per second, peak memory, share of the machine's own matrix-multiply speed."""

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.distributed.process_group import local_tensor

GIB = 2**30
UNTIMED_STEPS = 4
"""First steps of a process, left out of every speed: they allocate, and two of them are spent on measuring memory."""


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Throughput:
    """Tokens per second of training steps alone: evaluation, saves and the first steps stand outside.

    A window runs from `start` to `stop`; the figure is the median over windows, since small machines stutter.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._opened: tuple[int, float] | None = None
        self._rates: list[float] = []

    @property
    def running(self) -> bool:
        """Whether a window is open."""
        return self._opened is not None

    def start(self, step: int, device: torch.device) -> None:
        """Open a window after `step` steps."""
        synchronize(device)
        self._opened = step, self._clock()

    def stop(self, step: int, step_tokens: int, device: torch.device) -> float | None:
        """Close the window after `step` steps of `step_tokens` tokens each; return its tokens per second, if any."""
        opened, self._opened = self._opened, None
        if opened is None or step == opened[0]:
            return None
        synchronize(device)
        self._rates.append((step - opened[0]) * step_tokens / (self._clock() - opened[1]))
        return self._rates[-1]

    def drop(self) -> None:
        """Close the window without a figure: its steps were taken back."""
        self._opened = None

    def tokens_per_sec(self) -> float | None:
        """Return the median over windows, None before the first one."""
        return statistics.median(self._rates) if self._rates else None


class CudaMemory:
    """Peak bytes of CUDA's caching allocator over training steps, evaluation left out.

    `cuda` is `torch.cuda` or a stand-in with the same counters.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._allocated = self._reserved = 0

    def restart(self) -> None:
        """Forget what was allocated for a moment; the peaks read so far stay."""
        self._cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, float]:
        """Return the highest peaks seen at any `read`, in GiB."""
        self._allocated = max(self._allocated, self._cuda.max_memory_allocated())
        self._reserved = max(self._reserved, self._cuda.max_memory_reserved())
        return {
            "memory/peak_gpu_gib": self._allocated / GIB,
            "memory/peak_reserved_gib": self._reserved / GIB,
        }


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages behind `tensors`, of shards those that lie here, each counted once."""
    storages = {s.data_ptr(): s.nbytes() for s in (local_tensor(t).untyped_storage() for t in tensors)}
    return sum(storages.values())


def live_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yield weights, gradients, buffers and optimizer state: what lives between steps."""
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


class PeakTensorMemory:
    """Peak live tensor bytes of the enclosed step on a CPU, from the allocator events of `torch.profiler`.

    The events cover what is allocated inside; `baseline` are the bytes that lived before. Open it where
    gradients are None, since a tensor from before that is freed inside goes unnoticed.
    """

    def __init__(self, baseline: int) -> None:
        self._baseline = baseline
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler announces itself on stderr otherwise
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> "PeakTensorMemory":
        self._profile.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._profile.__exit__(*exception)

    def gib(self) -> float:
        """Return baseline plus the highest running sum of allocations and frees, in GiB."""
        results: Any = self._profile.profiler.kineto_results  # type: ignore[union-attr]
        events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
        return peak_of_events(events, self._baseline) / GIB


def peak_of_events(events: Iterable[tuple[int, int]], baseline: int) -> int:
    """Return the peak bytes of (time, signed bytes) events on top of `baseline`."""
    live = peak = baseline
    for _, size in sorted(events, key=lambda event: event[0]):
        live += size
        peak = max(peak, live)
    return peak


def measure_head_peak_gib(
    head: nn.Module,
    n_tokens: int,
    n_embd: int,
    vocab_size: int,
    device: torch.device,
    targets: Tensor | None = None,
) -> float:
    """Return the peak memory of the head's own forward and backward pass over `n_tokens` states, in GiB.

    Counted: states, targets, the weights that the head reads (a tied table too), their gradients, and whatever lives
    in between. Leaves no gradients, and the random generators as they were: a resumed run has restored its own.
    `targets` (n_tokens,) are spread over all groups where none are given; what some heads need depends on them.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _head_peak_gib(head, n_tokens, n_embd, vocab_size, device, targets)


def _head_peak_gib(
    head: nn.Module, n_tokens: int, n_embd: int, vocab_size: int, device: torch.device, targets: Tensor | None
) -> float:
    hidden = torch.linspace(-1, 1, n_embd, device=device).expand(n_tokens, n_embd).contiguous().requires_grad_()
    if targets is None:
        targets = torch.arange(n_tokens, device=device) * 7919 % vocab_size  # a prime apart: every group gets some
    before = tensor_bytes([hidden, targets, *head.parameters(), *head.buffers()])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        elsewhere = torch.cuda.memory_allocated(device) - before
        head(hidden, targets).nll.backward()
        peak = (torch.cuda.max_memory_allocated(device) - elsewhere) / GIB
    else:
        with PeakTensorMemory(before) as memory:
            head(hidden, targets).nll.backward()
        peak = memory.gib()
    head.zero_grad(set_to_none=True)
    return peak


class PeakRss:
    """Highest resident memory of the process over the enclosed steps, where Linux lets us reset the mark."""

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc

    def restart(self) -> None:
        """Set the high-water mark to what is resident now."""
        with contextlib.suppress(OSError):
            (self._proc / "clear_refs").write_text("5")

    def gib(self) -> float | None:
        """Return the mark in GiB, None where the system keeps none."""
        with contextlib.suppress(OSError):
            for line in (self._proc / "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / GIB
        return None


def measure_gemm_flops_per_sec(device: torch.device, dtype: torch.dtype, seconds: float = 0.15) -> float:
    """Return the best rate of a square matrix product here, in FLOP/s: the roof that `throughput/mfu` is a share of."""
    size = 4096 if device.type == "cuda" else 768
    a = torch.full((size, size), 0.5, device=device, dtype=dtype)  # no random numbers: a resumed run restored its own
    b = torch.full((size, size), 0.5, device=device, dtype=dtype)

    def once() -> float:
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        return time.perf_counter() - started

    once()
    best, until = once(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, once())
    return 2.0 * size**3 / best


class StepMemory:
    """Peak memory of training steps: CUDA's counters where there are some, else two untimed steps watched on the CPU.

    On a CPU the second step of a process gives the peak RSS and the third the peak of live tensor bytes: watching
    slows a step down, so neither is timed. `held_bytes` live beside weights, gradients and optimizer state.
    """

    def __init__(
        self,
        device: torch.device,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        cuda: Any = torch.cuda,
        held_bytes: int = 0,
    ) -> None:
        self._model, self._optimizer, self._held_bytes = model, optimizer, held_bytes
        self._cuda = CudaMemory(cuda) if device.type == "cuda" else None
        self._rss = PeakRss()
        self._figures: dict[str, float | None] = {}

    @contextlib.contextmanager
    def watch(self, steps_before: int) -> Iterator[None]:
        """Enclose one whole optimizer step; `steps_before` counts those of this process."""
        if self._cuda is not None:
            if steps_before == UNTIMED_STEPS:
                self._cuda.restart()
            yield
        elif steps_before == 1:
            self._rss.restart()
            yield
            self._figures["memory/peak_rss_gib"] = self._rss.gib()
        elif steps_before == 2:
            gc.collect()  # tensors that lay about from before would be taken off the peak when they go
            baseline = tensor_bytes(live_state(self._model, self._optimizer)) + self._held_bytes
            with PeakTensorMemory(baseline) as peak:
                yield
            self._figures["memory/peak_tensor_gib"] = peak.gib()
        else:
            yield

    def read(self) -> dict[str, float | None]:
        """Return the peaks known so far, in GiB; GPU figures are None on a CPU."""
        if self._cuda is not None:
            return dict(self._cuda.read())
        return {"memory/peak_gpu_gib": None, "memory/peak_reserved_gib": None} | self._figures

    def restart(self) -> None:
        """Leave out what was allocated since the last `read`, an evaluation for example."""
        if self._cuda is not None:
            self._cuda.restart()
