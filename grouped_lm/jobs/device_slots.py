"""A job's share of the machine: how many CPU threads it takes, and GPUs of its own where several jobs run at once.

Slots are lock files that every driver of one user on one machine shares; the kernel frees them when a holder dies.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

POLL_SECONDS = 0.2


def slots_folder() -> Path:
    """Return the folder of this user's slots on this machine."""
    return Path(tempfile.gettempdir()) / f"gvc-slots-{os.getuid()}"


@contextmanager
def take_slot(names: list[str], folder: Path) -> Iterator[str]:
    """Hold the first free slot of `names`, waiting for one; the earlier in the list, the sooner it is tried."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for name in names:
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield name
            finally:
                lock.release()
            return
        time.sleep(POLL_SECONDS)


@contextmanager
def take_slots(names: list[str], count: int, folder: Path) -> Iterator[list[str]]:
    """Hold `count` slots, or all that there are, on a GPU no more than one while there are others.

    Who collects several does so alone: two that each held half of what they need would wait for ever.
    """
    with ExitStack() as held:
        taken: list[str] = []
        with FileLock(folder / "several.lock") if count > 1 else ExitStack():
            while len(taken) < min(count, len(names)):
                used = {device_of(name) for name in taken}
                left = [name for name in names if name not in taken]
                others = [name for name in left if device_of(name) not in used]
                taken.append(held.enter_context(take_slot(others or left, folder)))
        yield taken


def device_of(slot: str) -> str:
    """Return the GPU of a slot `gpu-GPU-TURN`; a CPU's slot is one of its own."""
    return slot.removeprefix("gpu-").rsplit("-", 1)[0] if slot.startswith("gpu-") else slot


def visible_gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES names, or every CUDA device where it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1"]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Share:
    """What one job of a sweep may use.

    threads: CPU threads where `train.threads` leaves them open; None leaves torch's choice. Jobs side by side that
        each take all cores are many times slower than one after the other.
    cpu_slots: jobs at once on this machine, >= 1, where the launcher starts all of them; None: it counts itself.
    per_gpu: jobs at once on each GPU, >= 1; None where a scheduler has given this job its devices.
    """

    threads: int | None = None
    cpu_slots: int | None = None
    per_gpu: int | None = None

    def slot_names(self, device: str) -> list[str]:
        """Return the slots that a job on `device` (a `train.device`) may take, GPUs filled evenly; none: no limit."""
        if self.per_gpu is not None and device != "cpu":
            gpus = visible_gpus()
            if gpus:
                return [f"gpu-{gpu}-{turn}" for turn in range(self.per_gpu) for gpu in gpus]
        return [f"cpu-{number}" for number in range(self.cpu_slots or 0)]

    @contextmanager
    def environment(self, device: str, folder: Path | None = None, processes: int = 1) -> Iterator[dict[str, str]]:
        """Wait for this job's slots, one for each of its processes, hold them, and give its environment variables."""
        names, folder = self.slot_names(device), folder or slots_folder()
        each = self.threads if self.threads is None or self.cpu_slots else max(1, self.threads // processes)
        variables = {"OMP_NUM_THREADS": str(each)} if each else {}
        if not names:
            yield variables
            return
        folder.mkdir(parents=True, exist_ok=True)
        with take_slots(names, processes, folder) as taken:
            if taken[0].startswith("gpu-"):
                variables["CUDA_VISIBLE_DEVICES"] = ",".join(device_of(name) for name in taken)
            yield variables
