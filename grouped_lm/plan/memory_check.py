"""Check before the first step whether a training step fits into memory, from the shapes alone."""

import contextlib
import math
import resource
from pathlib import Path

import torch

from grouped_lm.config import Config, TrainConfig
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.errors import ConfigError, MemoryShortError
from grouped_lm.measure.devices import container_memory
from grouped_lm.measure.memory import GIB
from grouped_lm.plan.fake_step import UNKNOWN_SIZES, fake_steps, with_shape, with_train
from grouped_lm.plan.heads import largest

FIT_SHARE = 0.9
"""Share of the free memory that `fit_micro_batch` plans with: a GPU needs more than live tensors (`fake_step`)."""


def available_bytes(device: torch.device, side_by_side: int = 1) -> int | None:
    """Return the bytes that this process can still get on `device`; None if the system does not say.

    On a CPU, `side_by_side` processes share its memory.
    """
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
    return min(limits) // side_by_side if limits else None


def upper_bound_bytes(config: Config) -> int:
    """Return more bytes than a step needs, from a formula; if these are free, no fake step is needed."""
    model, vocab_size = config.model, vocab_size_of(config.tokenizer)
    weights = 13 * model.n_layer * model.n_embd**2 + 3 * vocab_size * model.n_embd
    rows = config.train.micro_batch_size * model.block_size
    per_row = 8 * vocab_size + model.n_layer * (64 * model.n_embd + 6 * model.n_head * model.block_size)
    return 4 * (4 * weights + rows * per_row)


def check_memory(config: Config, device: torch.device, processes: int = 1, side_by_side: int = 1) -> None:
    """Raise MemoryShortError if a step does not fit into memory; the message has the largest batch that does.

    Nothing is allocated. The processes share each batch; on a CPU `side_by_side` of them share its memory.
    """
    available = available_bytes(device, side_by_side)
    part = with_shape(config, batch=config.train.share(processes))
    if available is None or upper_bound_bytes(part) < available:
        return
    peak = peak_bytes(part, part.train.micro_batch_size, processes)
    if peak is not None and peak > available:
        raise memory_error(config, available, f"a step needs {peak / GIB:.2f} GiB", processes)


def peak_bytes(config: Config, batch: int, processes: int = 1) -> int | None:
    """Return the peak of a step with that batch; None for a head whose sizes depend on the tokens of a batch."""
    try:
        return int(fake_steps(config, [batch], processes=processes)[0].live.sum(1).max())
    except UNKNOWN_SIZES:
        return None


def largest_batch(config: Config, available: int, processes: int = 1) -> int | None:
    """Return the largest train.micro_batch_size below the config's that fits, or 0; None if it is unknown.

    Each trial is a fake step, because the peak is not linear in the batch: heads work in chunks.
    """

    def fits(batch: int) -> bool:
        peak = peak_bytes(config, batch, processes)
        return peak is not None and peak <= available

    return None if peak_bytes(config, 1, processes) is None else largest(fits, config.train.micro_batch_size - 1)


def batch_divisors(train: TrainConfig, processes: int = 1) -> list[int]:
    """Return the sizes of micro-batches, largest first, that divide the batch of a step and that processes can share.

    Raises:
        ConfigError: the processes cannot share the batch.
    """
    batch = train.micro_batch_size * train.grad_accum_steps
    if batch % processes:
        raise ConfigError(
            f"train.micro_batch_size=auto: a batch of {batch} windows (micro_batch_size x grad_accum_steps) cannot be "
            f"shared by {processes} processes"
        )
    small = [size for size in range(1, math.isqrt(batch) + 1) if batch % size == 0]
    return sorted(
        (size for size in {*small, *(batch // size for size in small)} if size % processes == 0), reverse=True
    )


def fit_micro_batch(config: Config, available: int | None, processes: int = 1) -> tuple[Config, int | None]:
    """Split the batch of a step into the largest micro-batches whose step fits into `FIT_SHARE` of the memory.

    The batch, `train.micro_batch_size` times `train.grad_accum_steps`, stays the same: all sizes tried divide it.

    Args:
        config: the run. Its own split says nothing but the batch.
        available: bytes that one process can get; None if the system does not say, and then nothing is limited.
        processes: share each micro-batch equally.

    Returns:
        The config with the split, and the predicted peak of a step in bytes of one process. The latter is None for a
        head whose sizes depend on the tokens: such a step is held against an upper bound.

    Raises:
        ConfigError: the processes cannot share the batch.
        MemoryShortError: even one window for each process does not fit.
    """
    sizes, split = batch_divisors(config.train, processes), config
    states = 4 * config.model.block_size * config.model.n_embd * config.model.n_layer
    for size in sizes:
        if available is not None and size // processes * states > available and size > sizes[-1]:
            continue  # the states between blocks alone are too much: no fake step is needed
        split = with_train(config, micro_batch_size=size, grad_accum_steps=sizes[0] // size)
        part = with_shape(split, batch=size // processes)
        peak = peak_bytes(part, size // processes, processes)
        if available is None or (upper_bound_bytes(part) if peak is None else peak) <= FIT_SHARE * available:
            return split, peak
    raise memory_error(split, available, f"{FIT_SHARE:.0%} of it may be planned", processes)


def memory_error(config: Config, available: int | None, reason: str, processes: int = 1) -> MemoryShortError:
    """Return the error with the settings to change."""
    fits, free = None, ""
    if available is not None:
        fits = largest_batch(with_shape(config, batch=config.train.share(processes)), available, processes)
        free = f", {available / GIB:.2f} GiB are free"
    if fits:
        advice = f"train.micro_batch_size={fits * processes} fits, with more train.grad_accum_steps"
    elif fits == 0:
        advice = "no batch fits: take a shorter model.block_size or a smaller model"
    else:
        advice = "take a smaller batch and more train.grad_accum_steps"
    advice += "" if config.head.name != "dense" else ", or head.chunk_rows=256"
    return MemoryShortError(
        f"out of memory with train.micro_batch_size={config.train.micro_batch_size} and "
        f"model.block_size={config.model.block_size} ({reason}{free}): {advice}"
    )


def explain_out_of_memory(
    error: Exception, config: Config, device: torch.device, processes: int = 1
) -> MemoryShortError | None:
    """Return the error for the user if `error` says that the device's memory is full, else None."""
    message = str(error).lower()
    if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in message):
        return None
    error.__traceback__ = None  # its frames hold large tensors
    with contextlib.suppress(Exception):  # the advice must not hide the reason
        return memory_error(config, available_bytes(device), "the allocator said no", processes)
    return memory_error(config, None, "the allocator said no")
