"""Whether a training step fits into the memory there is, asked of shapes before the first real step."""

import contextlib
import resource
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from grouped_lm.config import Config
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.errors import MemoryShortError
from grouped_lm.measure.devices import container_memory
from grouped_lm.plan.fake_step import fake_steps, with_shape
from grouped_lm.plan.heads import largest


def available_bytes(device: torch.device) -> int | None:
    """Return what `device` could still give to this process; None where nobody says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    limits = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        meminfo = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line for line in meminfo if line.startswith("MemAvailable:")).split()[1]))
    container = container_memory()
    if container is not None:
        limits.append(container[0] - container[1])
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits.append(soft - pages * resource.getpagesize())
    return min(limits) if limits else None


def rough_bytes(config: Config) -> int:
    """Return far more than a step needs, without building anything: where this fits, no dry run is worth its time."""
    model, vocab_size = config.model, vocab_size_of(config.tokenizer)
    weights = 13 * model.n_layer * model.n_embd**2 + 3 * vocab_size * model.n_embd
    rows = config.train.micro_batch_size * model.block_size
    per_row = 8 * vocab_size + model.n_layer * (64 * model.n_embd + 6 * model.n_head * model.block_size)
    return 4 * (4 * weights + rows * per_row)


def dry_run(config: Config, device: torch.device, processes: int = 1, side_by_side: int = 1) -> None:
    """Refuse a step whose shapes say that it will not fit, before its first allocation.

    Args:
        config: the run.
        device: one of those that train.
        processes: that share each batch.
        side_by_side: of these, how many share the memory of a CPU.

    Raises:
        MemoryShortError: with the largest train.micro_batch_size that would fit.
    """
    available, part = available_bytes(device), part_of(config, processes)
    if available is not None and device.type != "cuda":
        available //= side_by_side
    if available is None or rough_bytes(part) < available:
        return
    peak = peak_bytes(part, [part.train.micro_batch_size], processes)
    if peak is not None and peak[0] > available:
        raise short_of_memory(config, available, f"a step needs {peak[0] / 2**30:.2f} GiB", processes)


def part_of(config: Config, processes: int) -> Config:
    """Return the config with the batch of one process of several."""
    return with_shape(config, batch=config.train.share(processes))


def peak_bytes(config: Config, batches: list[int], processes: int = 1) -> list[int] | None:
    """Return the peak of a step for each batch; None for a head whose sizes depend on the tokens of a batch."""
    try:
        return [int(step.live.sum(1).max()) for step in fake_steps(config, batches, processes=processes)]
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None


def largest_batch(config: Config, available: int, processes: int = 1) -> int | None:
    """Return the largest train.micro_batch_size below the config's that fits; 0 where none does, None if unknown.

    Of one fake step after another: chunks of a head make the peak no straight line of the batch.
    """

    def fits(batch: int) -> bool:
        peaks = peak_bytes(config, [batch], processes)
        return peaks is not None and peaks[0] <= available

    return None if peak_bytes(config, [1], processes) is None else largest(fits, config.train.micro_batch_size - 1)


def short_of_memory(config: Config, available: int | None, what: str, processes: int = 1) -> MemoryShortError:
    """Return the line that says what to change."""
    batch = config.train.micro_batch_size
    fits = largest_batch(part_of(config, processes), available, processes) if available is not None else None
    fits = fits and fits * processes
    there = f", {available / 2**30:.2f} GiB are free" if available is not None else ""
    if fits:
        mend = f"train.micro_batch_size={fits} fits, with more train.grad_accum_steps"
    elif fits == 0:
        mend = "no batch fits: take a shorter model.block_size or a smaller model"
    else:
        mend = "take a smaller batch and more train.grad_accum_steps"
    mend += "" if config.head.name != "dense" else ", or head.chunk_rows=256"
    return MemoryShortError(
        f"out of memory with train.micro_batch_size={batch} and model.block_size={config.model.block_size} "
        f"({what}{there}): {mend}"
    )


def explain_out_of_memory(
    error: Exception, config: Config, device: torch.device, processes: int = 1
) -> MemoryShortError | None:
    """Return what to tell a user whose device ran out of memory; None for any other error."""
    words = str(error).lower()
    if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in words):
        return None
    error.__traceback__ = None  # its frames hold the tensors that stand in the way
    with contextlib.suppress(Exception):  # advice may not hide the reason
        return short_of_memory(config, available_bytes(device), "the allocator said no", processes)
    return short_of_memory(config, None, "the allocator said no")
