"""Micro-batches on their way to the device."""

from collections.abc import Callable

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Prefetcher:
    """Gives micro-batches on the device; the next one is read and copied there while the device computes.

    Copies go from pinned memory, so that the host does not wait for them.

    Args:
        load: index -> input_ids and targets, (B, T) each, on the CPU.
        device: where they are wanted.
        ahead: whether `prefetch` does anything; None means only where the device works beside the host.
    """

    def __init__(self, load: Callable[[int], Batch], device: torch.device, ahead: bool | None = None) -> None:
        self._load, self._device = load, device
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._prefetched: tuple[int, Batch] | None = None

    def batch(self, index: int) -> Batch:
        """Return micro-batch `index`, the prefetched one where it is that."""
        prefetched, self._prefetched = self._prefetched, None
        return prefetched[1] if prefetched is not None and prefetched[0] == index else self._send(index)

    def prefetch(self, index: int) -> None:
        """Send micro-batch `index` ahead: to be called once the work of the one before has been given to the device."""
        if self._ahead:
            self._prefetched = index, self._send(index)

    def _send(self, index: int) -> Batch:
        input_ids, targets = self._load(index)
        if self._device.type == "cuda":
            input_ids, targets = input_ids.pin_memory(), targets.pin_memory()
        return input_ids.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)
