"""The device of a bench, and how a pass on it is timed."""

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
    """A device, the dtype of matrix products on it, and the number of passes in one sample.

    A GPU runs asynchronously. Only the last of several passes is waited for, as in training.
    """

    device: torch.device
    dtype: str
    repeats: int

    def autocast(self) -> Any:
        """Return the context of a forward pass."""
        return autocast(self.device, self.dtype)

    def calibrate(self) -> Calibration:
        """Measure the speed of the device now."""
        return calibrate(self.device, getattr(torch, self.dtype))

    def timed(self, action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
        """Return the milliseconds of one `action`, the mean of `repeats` between two synchronizations."""

        def several() -> None:
            for _ in range(self.repeats):
                action()
            synchronize(self.device)

        synchronize(self.device)
        return timed(several, clock) / self.repeats
