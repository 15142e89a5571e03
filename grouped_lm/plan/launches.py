"""The launches of a head's loss and gradients on a GPU, counted on tensors without data.

Letters: B windows, T tokens of a window, D width.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grouped_lm.config import Config
from grouped_lm.heads.losses import kernels
from grouped_lm.measure.devices import DEVICES, Device
from grouped_lm.plan.fake_step import fake_model, faking
from grouped_lm.system.runtime import autocast

ALLOCATES = ("empty", "new_empty", "detach", "view", "_unsafe_view", "alias", "lift_fresh")
"""Beginnings of the names of operators that launch nothing, besides views."""


class _Launches(TorchDispatchMode):
    """Counts operators that launch something: those that are no view and allocate no memory alone."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        free = func.is_view or func.namespace == "prim" or func.overloadpacket.__name__.startswith(ALLOCATES)
        self.count += not free
        return func(*args, **kwargs or {})


def has_kernels(device: Device) -> bool:
    """Return whether the kernels of heads run on a known device: NVIDIA's, of compute capability 7.5 or more."""
    return device.name in DEVICES and "NVIDIA" in device.source and device.name != "v100"


def kernel_mode(device: Device) -> Any:
    """Return the context of a plan: the kernels that run on the device are part of it."""
    return kernels.mode("plan" if has_kernels(device) else "auto")


def count_launches(config: Config, device: Device, vocab_size: int | None = None) -> int:
    """Return the operators and kernels that the head's loss and its gradients launch, for B T states of width D.

    Without `vocab_size` the tokenizer gives V. An operator counts once, also where it launches several kernels or, as a
    custom one, many operators.
    """
    n_tokens = config.train.micro_batch_size * config.model.block_size
    with faking(), kernel_mode(device):
        head: Any = fake_model(config, vocab_size).head
        hidden = torch.zeros(n_tokens, head.n_embd, requires_grad=True)
        targets = torch.zeros(n_tokens, dtype=torch.int64)
        head(hidden, targets)  # what is kept from the first step on is made
        kernels.planned.clear()
        with _Launches() as launches, autocast(torch.device("cpu"), config.train.dtype):
            loss = head(hidden, targets).objective()
            loss.backward()
        return launches.count + len(kernels.planned)
