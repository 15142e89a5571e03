"""Peak memory of training steps: on a GPU from CUDA's counters, on a CPU from the profiler and from Linux."""

import contextlib
import gc
import itertools
import os
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.distributed.process_group import local_tensor
from grouped_lm.measure.throughput import UNTIMED_STEPS

GIB = 2**30


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of `tensors`, each counted once; of a sharded tensor, the local shard counts."""
    storages = {s.data_ptr(): s.nbytes() for s in (local_tensor(t).untyped_storage() for t in tensors)}
    return sum(storages.values())


def live_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yield weights, gradients, buffers and optimizer state: the tensors that live between steps."""
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


class PeakTensorMemory:
    """Peak bytes of live tensors inside a `with` block on a CPU, from the allocator events of `torch.profiler`.

    The events cover the allocations inside; `baseline` is the number of bytes that lived before. Gradients must be
    None at the beginning: the profiler does not see that an older tensor is freed.
    """

    def __init__(self, baseline: int) -> None:
        self._baseline = baseline
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler writes a greeting to stderr otherwise
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> "PeakTensorMemory":
        self._profile.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._profile.__exit__(*exception)

    def gib(self) -> float:
        """Return the baseline plus the highest running sum of allocations and frees, in GiB."""
        results: Any = self._profile.profiler.kineto_results  # type: ignore[union-attr]
        events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
        return peak_of_events(events, self._baseline) / GIB


def peak_of_events(events: Iterable[tuple[int, int]], baseline: int) -> int:
    """Return the peak bytes of (time, signed bytes) events on top of `baseline`."""
    return max(itertools.accumulate((size for _, size in sorted(events, key=itemgetter(0))), initial=baseline))


def measure_head_peak_gib(
    head: nn.Module, n_tokens: int, n_embd: int, vocab_size: int, device: torch.device, targets: Tensor | None = None
) -> float:
    """Return the peak memory of one forward and backward pass of the head alone, in GiB.

    It counts the hidden states, the targets, the head's weights (a tied table too), the gradients, and everything
    that lives in between. It leaves no gradients and does not change the random generators. The memory of some heads
    depends on the (n_tokens,) targets: None spreads them over all groups.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        hidden = torch.linspace(-1, 1, n_embd, device=device).expand(n_tokens, n_embd).contiguous().requires_grad_()
        if targets is None:
            targets = torch.arange(n_tokens, device=device) * 7919 % vocab_size  # steps of a prime reach every group
        before = tensor_bytes([hidden, targets, *head.parameters(), *head.buffers()])
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            other = torch.cuda.memory_allocated(device) - before
            head(hidden, targets).nll.backward()
            peak = (torch.cuda.max_memory_allocated(device) - other) / GIB
        else:
            with PeakTensorMemory(before) as memory:
                head(hidden, targets).nll.backward()
            peak = memory.gib()
        head.zero_grad(set_to_none=True)
        return peak


def restart_peak_rss(proc: Path = Path("/proc/self")) -> None:
    """Set the process's mark of the highest resident memory to what is resident now, where Linux allows it."""
    with contextlib.suppress(OSError):
        (proc / "clear_refs").write_text("5")


def peak_rss_gib(proc: Path = Path("/proc/self")) -> float | None:
    """Return the highest resident memory since `restart_peak_rss` in GiB, None where the system has no mark."""
    with contextlib.suppress(OSError):
        for line in (proc / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    return None


class StepMemory:
    """Peak memory of training steps.

    With CUDA the allocator's counters give it: `cuda` is `torch.cuda`, or an object with the same counters. On a CPU
    the second step of a process gives the peak of resident memory, and the third step the peak of live tensors. Both
    are slower, so neither counts for the speed. `held_bytes` live beside weights, gradients and optimizer state.
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
        self._cuda = cuda if device.type == "cuda" else None
        self._peaks: dict[str, float | None] = {"memory/peak_gpu_gib": None, "memory/peak_reserved_gib": None}

    @contextlib.contextmanager
    def watch(self, steps_before: int) -> Iterator[None]:
        """Measure the optimizer step inside the `with` block; `steps_before` counts this process's earlier steps."""
        if self._cuda is not None:
            if steps_before == UNTIMED_STEPS:
                self.restart()
            yield
        elif steps_before == 1:
            restart_peak_rss()
            yield
            self._peaks["memory/peak_rss_gib"] = peak_rss_gib()
        elif steps_before == 2:
            gc.collect()  # an old tensor that is freed inside would lower the peak
            baseline = tensor_bytes(live_state(self._model, self._optimizer)) + self._held_bytes
            with PeakTensorMemory(baseline) as peak:
                yield
            self._peaks["memory/peak_tensor_gib"] = peak.gib()
        else:
            yield

    def read(self) -> dict[str, float | None]:
        """Return the highest peaks of all calls of `read`, in GiB; GPU peaks are None on a CPU."""
        if self._cuda is not None:
            counters = self._cuda.max_memory_allocated(), self._cuda.max_memory_reserved()
            for name, value in zip(("memory/peak_gpu_gib", "memory/peak_reserved_gib"), counters, strict=True):
                self._peaks[name] = max(self._peaks[name] or 0.0, value / GIB)
        return dict(self._peaks)

    def restart(self) -> None:
        """Ignore the GPU's peak since the last `read`, such as that of an evaluation."""
        if self._cuda is not None:
            self._cuda.reset_peak_memory_stats()
