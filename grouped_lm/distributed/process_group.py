"""The processes that train one model together: which of them this is, and how they agree.

A process group is torch's own, started by `launch` or by an outer `torchrun`. What they have to agree on, flags and
counts and small facts, travels between CPUs (gloo), so that no GPU is waited for; gradients of GPUs travel by NCCL.

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
TIMEOUT = timedelta(minutes=30)
"""How long one waits for the others at least: the first may be writing a checkpoint, or preparing text."""
FOREVER = timedelta(days=365)

LAST_WORD = "last-word"


@dataclass(frozen=True)
class World:
    """One process among W; every method but `is_first` is to be called by all of them, in the same order."""

    rank: int = 0
    """In [0, W)."""
    size: int = 1
    """W."""
    local_rank: int = 0
    """On this machine: the number of its GPU."""
    local_size: int = 1
    """Processes on this machine."""
    restarts: int = 0
    """How often all of them were started again."""
    meeting: dist.Store | None = None
    """Where they found each other; it lives through restarts."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what the run leaves behind."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return this process's own device of that type."""
        if device.type != "cuda" or self.size == 1:
            return device
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def first(self, action: Callable[..., Value], *args: Any) -> Value:
        """Let the first process alone do `action(*args)`, and return its JSON-able result to all.

        Raises:
            GvcError, OSError: what the action raised, in every process.
        """
        if self.size == 1:
            return action(*args)
        told: dict[str, Any] = {}
        raised: GvcError | OSError | None = None
        if self.is_first:
            try:
                told = {"value": action(*args)}
            except (GvcError, OSError) as error:
                raised, told = error, {"error": describe_error(error)}
        told = self._tell(told)
        if "error" in told:
            raise known_to_all(raised or error_from(told["error"]))
        return told["value"]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process."""
        if self.size == 1:
            return flags
        both = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in both.tolist())

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the tensor of every process, by rank; all have the same shape."""
        if self.size == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values)
        return gathered

    def fill(self, target: Tensor, source: Tensor | None) -> None:
        """Fill `target`, whole or a shard in each process, with the first one's `source`, which others may lack."""
        if self.size == 1:
            assert source is not None  # the first process has it
            target.copy_(source)
            return
        device = target.device
        full = torch.empty(target.shape, dtype=target.dtype, device=device) if source is None else source.to(device)
        if is_sharded(target):
            shards: Any = target
            distribute = importlib.import_module("torch.distributed.tensor").distribute_tensor
            full = distribute(full, shards.device_mesh, shards.placements, src_data_rank=0)
        else:
            dist.broadcast(full, 0)
        target.copy_(full)

    def seed(self, seed: int, step: int) -> None:
        """Give every process but the first, which goes on with its own, a stream of random numbers of its own.

        A pure function of the run's seed, the process and the step at which it began.
        """
        if self.is_first:
            return
        words = np.random.SeedSequence([seed, self.rank, step]).generate_state(2)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))

    def leave_word(self, error: GvcError) -> None:
        """Leave the reason why this process ends for all that are started again: they end with it, see `join_world`."""
        if self.meeting is not None:
            with contextlib.suppress(RuntimeError):  # whoever keeps the store is gone
                self.meeting.set(LAST_WORD, json.dumps(describe_error(error)))

    def _tell(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return the first one's value."""
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor(content.numel())
        dist.broadcast(size, 0)
        if not self.is_first:
            content = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return json.loads(bytes(content.tolist()))


ALONE = World()
"""One process: nothing is sent, nothing is waited for."""


def is_sharded(tensor: Any) -> bool:
    """Return whether this is torch's `DTensor`, whose module takes half a second to import where nobody shards."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """Return a sharded tensor in full, which all processes have to ask for; others as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Any) -> Tensor:
    """Return the part of a sharded tensor that lies here; others as they are."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def started_as() -> tuple[int, int]:
    """Return which process this is, and of how many that `torchrun` or `launch` has started."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def patience(hang_minutes: float | None) -> timedelta:
    """Return how long a process of a training waits for the others."""
    return FOREVER if hang_minutes is None else max(TIMEOUT, min(FOREVER, timedelta(minutes=hang_minutes + 1)))


def local_processes() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextlib.contextmanager
def join_world(asked: int, device: torch.device, hang_minutes: float | None = 0.0) -> Iterator[World]:
    """Join the processes that were started together; alone where there are no others.

    Args:
        asked: processes that the config names; 1 takes those that there are.
        device: a CPU, or any CUDA device.
        hang_minutes: how long all may stand still, see `watchdog`; whoever waits for the others lets that end first.

    Raises:
        ConfigError: there are others than were asked for.
        GvcError: what one of them raised before a restart; it would come again.
    """
    rank, size = started_as()
    if asked not in (1, size):
        raise ConfigError(
            f"train.devices and train.nodes make {asked} processes, and {size} were started: leave them out"
        )
    if size == 1:
        yield ALONE
        return
    meeting = meeting_store(rank, size)
    turn = agree_on_turn(meeting, rank, size)
    world = World(
        rank=rank,
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_size=local_processes(),
        restarts=turn - 1,
        meeting=meeting,
    )
    if meeting.check([LAST_WORD]):
        raise known_to_all(error_from(json.loads(meeting.get(LAST_WORD))))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = dist.PrefixStore(f"turn-{turn}", meeting)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience(hang_minutes))
    try:
        yield world
    finally:
        dist.destroy_process_group()


def meeting_store(rank: int, size: int) -> dist.Store:
    """Return the store where the processes find each other: the launcher's own, which lives through restarts."""
    environment = os.environ
    has_server = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        size,
        is_master=rank == 0 and not has_server,
        timeout=TIMEOUT,
    )


def agree_on_turn(meeting: dist.Store, rank: int, size: int) -> int:
    """Return the number of this turn, counted from 1 since the launchers started: the same in all processes.

    Addresses of lost processes stay in the store (torch 2.13), and one that reads such an address waits for ever: every
    turn needs a part of the store to itself. Launchers of several machines do not count alike
    (`TORCHELASTIC_RESTART_COUNT` is each one's own), so the processes do: each leaves a word that nobody used before,
    and waits until the first process has answered to that very word. Processes of two turns never live side by side.

    Raises:
        DistStoreError: somebody did not come within `TIMEOUT`.
    """
    if rank:
        word = secrets.token_hex(16)
        meeting.set(f"word-{rank}", word)
        turn = int(meeting.get(f"answer-{word}"))  # waits
        meeting.add(f"heard-{turn}", 1)
        return turn
    turn, until = meeting.add("turns", 1), time.monotonic() + TIMEOUT.total_seconds()
    answered: dict[str, bytes] = {}
    while (heard := meeting.add(f"heard-{turn}", 0)) < size - 1:
        if time.monotonic() > until:
            raise dist.DistStoreError(f"{size - 1 - heard} of {size} processes did not come")
        for key in (f"word-{other}" for other in range(1, size)):
            if meeting.check([key]) and (said := meeting.get(key)) != answered.get(key):
                meeting.set(f"answer-{said.decode()}", str(turn))
                answered[key] = said  # of a lost process, perhaps: a later word replaces it
        time.sleep(0.01)
    return turn


def known_to_all(error: GvcError | OSError) -> GvcError | OSError:
    """Return the error, marked as one that all processes raise."""
    if isinstance(error, GvcError):
        error.agreed = True
    return error


def describe_error(error: GvcError | OSError) -> list[Any]:
    """Return what `error_from` makes the same error of, ready for JSON."""
    if isinstance(error, OSError):
        return ["OSError", error.errno, error.strerror or str(error)]
    return [type(error).__name__, str(error)]


def error_from(described: list[Any]) -> GvcError | OSError:
    """Return the error that another process described."""
    name, *words = described
    return OSError(*words) if name == "OSError" else getattr(errors, name)(*words)
