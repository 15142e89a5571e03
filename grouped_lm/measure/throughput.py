"""Speed: tokens per second of training steps, and the machine's own speed of matrix products."""

import statistics
import time
from collections.abc import Callable

import torch

UNTIMED_STEPS = 4
"""First steps of a process without a speed: they allocate memory, and two of them measure its peak."""


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Throughput:
    """Tokens per second of training steps alone, without evaluation, saves and the first steps.

    A window lasts from `start` to `stop`. The result is the median over windows, because small machines stutter.
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
        """Close the window after `step` steps of `step_tokens` tokens each; return its tokens per second, or None."""
        opened, self._opened = self._opened, None
        if opened is None or step == opened[0]:
            return None
        synchronize(device)
        self._rates.append((step - opened[0]) * step_tokens / (self._clock() - opened[1]))
        return self._rates[-1]

    def drop(self) -> None:
        """Close the window without a result, because its steps were undone."""
        self._opened = None

    def tokens_per_sec(self) -> float | None:
        """Return the median over windows, None before the first one."""
        return statistics.median(self._rates) if self._rates else None


def best_seconds(work: Callable[[], object], device: torch.device, seconds: float = 0.15) -> float:
    """Return the shortest time of `work` on `device`, which is repeated for about `seconds` after one warm-up."""

    def once() -> float:
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - started

    once()
    best, until = once(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, once())
    return best


def measure_gemm_flops_per_sec(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate of a square matrix product in FLOP/s; `throughput/mfu` is a share of it."""
    size = 4096 if device.type == "cuda" else 768
    # constants, no random numbers: a resumed run has restored its own generator
    a, b = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / best_seconds(lambda: a @ b, device)


def measure_copy_bytes_per_sec(device: torch.device, n_bytes: int = 2**26) -> float:
    """Return the best rate of a copy of `n_bytes` on `device`, in bytes read and written per second."""
    source, target = (torch.zeros(n_bytes // 4, device=device) for _ in range(2))
    return 2 * n_bytes / best_seconds(lambda: target.copy_(source), device)
