"""Counters of a training run. A checkpoint saves all of them."""

import math
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Position of the run. A rollback returns it to the last checkpoint, with weights and optimizer state."""

    step: int = 0
    """Optimizer steps done."""
    loss_sums: dict[str, float] = field(default_factory=dict)
    """Losses since the last logged row, summed over `loss_steps` steps."""
    loss_steps: int = 0
    eval_due: bool = False
    """Whether the validation of this step is still to be done."""
    row: dict[str, Any] = field(default_factory=dict)
    """The last logged row. Its speed is the median so far."""

    def add(self, losses: dict[str, float]) -> None:
        """Add the mean losses of one step."""
        for key, value in losses.items():
            self.loss_sums[key] = self.loss_sums.get(key, 0.0) + value
        self.loss_steps += 1

    def pop_mean_losses(self) -> dict[str, float]:
        """Return the mean losses since the last row, and reset the sums."""
        means = {key: total / self.loss_steps for key, total in self.loss_sums.items()}
        self.loss_sums, self.loss_steps = {}, 0
        return means | {"train/perplexity": math.exp(min(means["train/loss"], 700.0))}


@dataclass
class History:
    """Totals of the run. A rollback keeps them."""

    nonfinite: int = 0
    """Steps whose loss or gradient was not finite."""
    overflow_steps: int = 0
    """Steps of `train.dtype=float16` that were left out because their scaled gradient overflowed."""
    skipped_steps: int = 0
    """Steps' worth of text that rollbacks skipped. It is not read again."""
    seconds: float = 0.0
    """Time spent by earlier processes."""
    checkpoint_seconds: float = 0.0
    """Part of all the time that was spent on checkpoints."""
    started: float = 0.0
    """Clock reading when this process began to train. It is not saved."""

    def start(self) -> None:
        """Start the clock of this process."""
        self.started = time.monotonic()

    def total_seconds(self) -> float:
        """Return the time spent by all processes so far."""
        return self.seconds + time.monotonic() - self.started

    def saved(self) -> dict[str, Any]:
        """Return the fields that a checkpoint saves."""
        totals = vars(self) | {"seconds": self.total_seconds()}
        return {key: value for key, value in totals.items() if key != "started"}


@dataclass(frozen=True)
class Due:
    """The work after a step. All processes agree on it."""

    log: bool
    validate: bool
    save: bool
    stop: bool
