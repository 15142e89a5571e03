"""Where a bench measures, and how a pass is waited for there."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from grouped_lm.bench.timing import Calibration, calibrate, timed
from grouped_lm.measure.throughput import synchronize
from grouped_lm.system.precision import autocast


@dataclass(frozen=True)
class Place:
    """A device, the type of matrix products on it, and the passes that make one sample.

    On a GPU the host runs ahead: only the last of several passes is waited for, as in training.
    """

    device: torch.device
    dtype: str
    repeats: int

    def autocast(self) -> Any:
        """Return the context of a forward pass."""
        return autocast(self.device, self.dtype)

    def calibrate(self) -> Calibration:
        """Measure what the device can do now."""
        return calibrate(self.device, getattr(torch, self.dtype))

    def timed(self, action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
        """Return the milliseconds of one `action`, the mean of `repeats` between two waits."""

        def several() -> None:
            for _ in range(self.repeats):
                action()
            synchronize(self.device)

        synchronize(self.device)
        return timed(several, clock) / self.repeats
