"""The processes that train one model together: the rank of this one, and how all of them agree.

The group is torch's own. `jobs.launch` or an outer `torchrun` starts the processes. Flags, counts and small facts are
exchanged between CPUs (gloo), so that no GPU has to wait. Gradients of GPUs are exchanged by NCCL.

Letters: W processes.
"""

import contextlib
import importlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from grouped_lm import errors
from grouped_lm.errors import ConfigError, GvcError

Value = TypeVar("Value")
MIN_TIMEOUT = timedelta(minutes=30)
"""Shortest time to wait for another process: the first one may be writing a checkpoint or preparing text."""
MAX_TIMEOUT = timedelta(days=365)
ERROR_KEY = "published-error"


@dataclass(frozen=True)
class ProcessGroup:
    """One process among W.

    All processes have to call the same methods in the same order. Only `is_first` and `device` may be used by one.
    """

    rank: int = 0
    """In [0, W)."""
    size: int = 1
    """W."""
    local_rank: int = 0
    """Rank on this machine, and the number of the GPU."""
    local_size: int = 1
    """Number of processes on this machine."""
    restarts: int = 0
    """Number of times that all processes were started again."""
    store: dist.Store | None = None
    """Key-value store of the launcher. It survives restarts."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process, of the given type."""
        if device.type != "cuda" or self.size == 1:
            return device
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def on_first(self, action: Callable[..., Value], *args: Any) -> Value:
        """Call `action(*args)` in the first process only. All processes return its result, or raise its error."""
        if self.size == 1:
            return action(*args)
        answer: list[Any] = [None]
        if self.is_first:
            try:
                answer = [(action(*args), None)]
            except (GvcError, OSError) as raised:
                answer = [(None, raised)]
        dist.broadcast_object_list(answer, 0, device=torch.device("cpu"))
        value, error = answer[0]
        if error is not None:
            raise mark_agreed(error)
        return value

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process."""
        if self.size == 1:
            return flags
        set_somewhere = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(set_somewhere, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in set_somewhere.tolist())

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the tensor of every process, by rank. All tensors have the same shape."""
        if self.size == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values)
        return gathered

    def broadcast(self, target: Tensor, source: Tensor | None) -> None:
        """Copy the whole `source`, which only the first process needs, into every process's `target` or shard of it."""
        device = target.device
        full = torch.empty(target.shape, dtype=target.dtype, device=device) if source is None else source.to(device)
        if self.size == 1:
            assert source is not None  # the first process has it
        elif is_sharded(target):
            shards: Any = target
            distribute = importlib.import_module("torch.distributed.tensor").distribute_tensor
            full = distribute(full, shards.device_mesh, shards.placements, src_data_rank=0)
        else:
            dist.broadcast(full, 0)
        target.copy_(full)

    def seed_generator(self, seed: int, step: int) -> None:
        """Seed the random generator of every process but the first by the run's seed, the rank and the current step."""
        if not self.is_first:
            words = np.random.SeedSequence([seed, self.rank, step]).generate_state(2)
            torch.manual_seed(int(words[0]) << 32 | int(words[1]))

    def publish_error(self, error: GvcError) -> None:
        """Store the error that ends this process. After a restart all processes raise it (`join_process_group`)."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):  # the process that keeps the store has ended
                self.store.set(ERROR_KEY, json.dumps(describe_error(error)))


SINGLE_PROCESS = ProcessGroup()
"""A group of one process. It sends nothing and waits for nothing."""


def is_sharded(tensor: Any) -> bool:
    """Return whether this is torch's `DTensor`, without the import of its module, which takes half a second."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Any) -> Tensor:
    """Return a sharded tensor in full (all processes have to call this), and any other tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_tensor(tensor: Any) -> Tensor:
    """Return this process's part of a sharded tensor, and any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes that `torchrun` or `jobs.launch` started."""
    started = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if started else (0, 1)


def processes_on_this_machine() -> int:
    """Return how many of the started processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def group_timeout(hang_minutes: float | None) -> timedelta:
    """Return how long a training process waits for the others: longer than the watchdog, which must end it first."""
    wanted = MAX_TIMEOUT if hang_minutes is None else timedelta(minutes=hang_minutes + 1)
    return max(MIN_TIMEOUT, min(MAX_TIMEOUT, wanted))


@contextlib.contextmanager
def join_process_group(asked: int, device: torch.device, hang_minutes: float | None = 0.0) -> Iterator[ProcessGroup]:
    """Join the processes that were started together. Without others, give `SINGLE_PROCESS`.

    `asked` is the number of processes in the config, where 1 accepts any number.

    Raises:
        ConfigError: another number of processes was started.
        GvcError: one process raised it before a restart. It would come again.
    """
    rank, size = rank_and_size()
    if asked not in (1, size):
        raise ConfigError(
            f"train.devices and train.nodes make {asked} processes, and {size} were started: leave them out"
        )
    if size == 1:
        yield SINGLE_PROCESS
        return
    has_server = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torch's launcher: it survives restarts
    address, port, is_master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank == 0 and not has_server
    store = dist.TCPStore(address, port, size, is_master=is_master, timeout=MIN_TIMEOUT)
    attempt = agree_on_attempt(store, rank, size)
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    process_group = ProcessGroup(rank, size, local_rank, processes_on_this_machine(), attempt - 1, store)
    if store.check([ERROR_KEY]):
        raise mark_agreed(error_from(json.loads(store.get(ERROR_KEY))))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    own_store = dist.PrefixStore(f"attempt-{attempt}", store)
    timeout = group_timeout(hang_minutes)
    dist.init_process_group(backend, store=own_store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield process_group
    finally:
        dist.destroy_process_group()


def agree_on_attempt(store: dist.Store, rank: int, size: int) -> int:
    """Return the number of this attempt, from 1. It is the same in all processes and grows with each restart.

    The store keeps the addresses of lost processes (torch 2.13). A process that reads such an address waits for ever,
    so every attempt needs a prefix of its own in the store. The launchers of several machines do not count alike
    (each has its own `TORCHELASTIC_RESTART_COUNT`). The processes therefore count together: each one writes a new
    random token and waits until the first process has answered it. Two attempts never run at the same time.
    """
    if rank:
        token = secrets.token_hex(16)
        store.set(f"token-{rank}", token)
        attempt = int(store.get(f"answer-{token}"))  # waits
        store.add(f"joined-{attempt}", 1)
        return attempt
    attempt, until = store.add("attempts", 1), time.monotonic() + MIN_TIMEOUT.total_seconds()
    answered: dict[str, bytes] = {}
    while (joined := store.add(f"joined-{attempt}", 0)) < size - 1:
        if time.monotonic() > until:
            raise dist.DistStoreError(f"{size - 1 - joined} of {size} processes did not come")
        for key in (f"token-{other}" for other in range(1, size)):
            if store.check([key]) and (given := store.get(key)) != answered.get(key):
                store.set(f"answer-{given.decode()}", str(attempt))
                answered[key] = given  # it may be of a lost process: a later token replaces it
        time.sleep(0.01)
    return attempt


def mark_agreed(error: GvcError | OSError) -> GvcError | OSError:
    """Return the error, marked as one that all processes raise."""
    if isinstance(error, GvcError):
        error.agreed = True
    return error


def describe_error(error: GvcError | OSError) -> list[Any]:
    """Return the error as a JSON list, from which `error_from` builds it again."""
    if isinstance(error, OSError):
        return ["OSError", error.errno, error.strerror or str(error)]
    return [type(error).__name__, str(error)]


def error_from(described: list[Any]) -> GvcError | OSError:
    """Return the error that `describe_error` described."""
    name, *words = described
    return OSError(*words) if name == "OSError" else getattr(errors, name)(*words)
