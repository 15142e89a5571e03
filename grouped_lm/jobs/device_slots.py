"""The share of a machine that one job of a sweep uses: CPU threads, and GPUs of its own if several jobs run at once.

A device slot is a lock file that all drivers of one user on one machine share.
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
    """Return the folder of this user's device slots on this machine."""
    return Path(tempfile.gettempdir()) / f"gvc-slots-{os.getuid()}"


@contextmanager
def take_slot(names: list[str], folder: Path) -> Iterator[str]:
    """Wait for a free slot of `names`, hold it, and give its name. Earlier names are tried first."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for name in names:
            try:
                held = FileLock(folder / f"{name}.lock").acquire(timeout=0)
            except Timeout:
                continue
            with held:
                yield name
            return
        time.sleep(POLL_SECONDS)


@contextmanager
def take_slots(names: list[str], count: int, folder: Path) -> Iterator[list[str]]:
    """Wait for `count` slots, or all that exist, on different GPUs if possible, hold them and give their names.

    Only one process at a time collects several slots: two that each hold half of what they need would wait forever.
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
    """Return the GPU of a slot `gpu-GPU-ROUND`; a CPU slot is a device of its own."""
    return slot.removeprefix("gpu-").rsplit("-", 1)[0] if slot.startswith("gpu-") else slot


def visible_gpus() -> list[str]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES, or every CUDA device if it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1"]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Share:
    """The threads and devices that one job of a sweep may use."""

    threads: int | None = None
    """CPU threads, if `train.threads` is not set. None leaves torch's choice, which is slow for jobs side by side."""
    cpu_slots: int | None = None
    """Jobs at once on this machine, >= 1. None if the launcher counts itself."""
    per_gpu: int | None = None
    """Jobs at once on each GPU, >= 1. None if a scheduler gave this job its devices."""

    def slot_names(self, device: str) -> list[str]:
        """Return the slots for a job on `device` (a `train.device`), GPUs in turn. An empty list means no limit."""
        if self.per_gpu is not None and device != "cpu" and (gpus := visible_gpus()):
            return [f"gpu-{gpu}-{turn}" for turn in range(self.per_gpu) for gpu in gpus]
        return [f"cpu-{number}" for number in range(self.cpu_slots or 0)]

    @contextmanager
    def environment(self, device: str, folder: Path | None = None, processes: int = 1) -> Iterator[dict[str, str]]:
        """Wait for one slot per process of a job, hold them, and give the environment variables of the job."""
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
