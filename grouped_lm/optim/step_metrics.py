"""What a step leaves on the device, read by the host later: a read waits for all that the device was given before.

Letters: P parts of the loss.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grouped_lm.heads.base import HeadLoss

PARTS = (("train/loss", "nll"), ("train/loss_group", "group_nll"), ("train/loss_token", "token_nll"))


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One step, as the host has read it."""

    step: int
    """Steps before this one."""
    lr: float
    losses: dict[str, float]
    """Means over micro-steps, by the keys of the record."""
    grad_norm: float
    """Of the whole gradient, before it was clipped."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite numbers, and so whether the weights were updated."""
        return math.isfinite(self.losses["train/loss"]) and math.isfinite(self.grad_norm)

    @property
    def problem(self) -> str:
        """The line that says what is wrong with a step that is not finite."""
        loss = self.losses["train/loss"]
        return (
            f"diverged at step {self.step}: loss {loss:g}, gradient norm {self.grad_norm:g}, learning rate {self.lr:g}"
        )


def reads_at_once(device: torch.device) -> bool:
    """Return whether the host reads every step's figures when it is done: only where that waits for nothing."""
    return device.type == "cpu"


class StepMetricsBuffer:
    """The figures of steps that the host has not read yet.

    Until it does, the device itself keeps an update from poisoning the weights: `add` gives the optimizer the flag by
    which torch's fused AdamW passes a step over (as it does for `torch.amp.GradScaler`).
    """

    def __init__(self, device: torch.device) -> None:
        self.at_once = reads_at_once(device)
        self._steps: list[tuple[int, float, list[str], Tensor]] = []

    def add(
        self, optimizer: torch.optim.Optimizer, losses: list[HeadLoss], grad_norm: Tensor, step: int, lr: float
    ) -> None:
        """Keep the figures of a step before its update, and let that be passed over unless they are finite.

        Args:
            optimizer: fused, or one that asks for its attribute `found_inf` itself.
            losses: of the micro-steps.
            grad_norm: (), before clipping.
            step: steps before this one.
            lr: of this step.
        """
        given = {key: [getattr(loss, part) for loss in losses] for key, part in PARTS}
        given = {key: values for key, values in given.items() if values[0] is not None}
        means = [torch.stack([value.detach() for value in values]).double().mean() for values in given.values()]
        figures = torch.stack([*means, grad_norm.detach().double()])
        optimizer.found_inf = 1.0 - figures.isfinite().all().float()  # type: ignore[attr-defined]
        self._steps.append((step, lr, list(given), figures))

    def read(self) -> list[StepMetrics]:
        """Return what was added since the last call, in order; waits for the device."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        rows = torch.stack([figures for *_, figures in steps]).tolist()
        return [
            StepMetrics(step, lr, dict(zip(keys, row, strict=False)), row[-1])
            for (step, lr, keys, _), row in zip(steps, rows, strict=True)
        ]
