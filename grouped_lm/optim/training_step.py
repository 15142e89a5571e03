"""One optimizer step and its metrics. Training runs it on data, and `gvc plan` runs it on tensors without data.

The metrics stay on the device until the host reads them. A read waits until the device has done all its work, so the
host reads only when a row of metrics is due.

Letters: B windows, T tokens of a window.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from grouped_lm.config import Config
from grouped_lm.distributed.parallel import ParallelModel, clip_gradients, count_targets
from grouped_lm.heads.losses.functional import HeadLoss
from grouped_lm.optim.ema import update_average
from grouped_lm.optim.used_rows import used_rows
from grouped_lm.system.runtime import autocast

MIN_LOSS_SCALE = 1e-4
"""A step of `train.dtype=float16` that overflows at a smaller scale ends the run. It is fairseq's limit."""
PARTS = (("train/loss", "nll"), ("train/loss_group", "group_nll"), ("train/loss_token", "token_nll"))


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Metrics of one step on the host."""

    step: int
    """Steps before this one."""
    lr: float
    losses: dict[str, float]
    """Means over micro-steps in nats, by their keys in metrics.jsonl."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    loss_scale: float | None = None
    """Factor of the loss in the backward pass of `train.dtype=float16`."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite, and so whether the weights were updated."""
        return math.isfinite(self.losses["train/loss"]) and math.isfinite(self.grad_norm)

    @property
    def overflowed(self) -> bool:
        """Whether the scale was too large: the loss is finite, and its scaled gradient is not."""
        return self.loss_scale is not None and math.isfinite(self.losses["train/loss"]) and not self.finite

    @property
    def problem(self) -> str:
        """One line about a step that is not finite."""
        return (
            f"diverged at step {self.step}: loss {self.losses['train/loss']:g}, gradient norm {self.grad_norm:g}, "
            f"learning rate {self.lr:g}"
        )


def reads_at_once(device: torch.device) -> bool:
    """Return whether the host reads the metrics after every step: only on a CPU, where the read does not wait."""
    return device.type == "cpu"


@dataclass(frozen=True, slots=True)
class DeviceMetrics:
    """Metrics of one step on the device."""

    keys: list[str]
    """Keys of the losses, as in metrics.jsonl."""
    values: Tensor
    """The losses, the norm of the gradient, and the scale of the loss where there is one; in fp64."""


def measure(
    optimizer: torch.optim.Optimizer, losses: list[HeadLoss], grad_norm: Tensor, loss_scale: Tensor | None = None
) -> DeviceMetrics:
    """Return the metrics of a step before its update, and let the optimizer skip it unless they are finite.

    The optimizer gets the flag `found_inf`, with which torch's fused AdamW skips a step (as it does for
    `torch.amp.GradScaler`).
    """
    parts = {key: [getattr(loss, part) for loss in losses] for key, part in PARTS}
    parts = {key: values for key, values in parts.items() if values[0] is not None}
    means = [torch.stack([value.detach() for value in values]).double().mean() for values in parts.values()]
    metrics = torch.stack([*means, grad_norm.detach().double()])
    optimizer.found_inf = 1.0 - metrics.isfinite().all().float()  # type: ignore[attr-defined]
    if loss_scale is not None:
        metrics = torch.cat([metrics, loss_scale.double()])
    return DeviceMetrics(list(parts), metrics)


class StepMetricsBuffer:
    """Metrics of the steps that the host has not read yet.

    Until then the device itself protects the weights from a step that is not finite (`measure`).
    """

    def __init__(self, device: torch.device) -> None:
        self.at_once = reads_at_once(device)
        self._steps: list[tuple[int, float, DeviceMetrics]] = []

    def add(self, metrics: DeviceMetrics, step: int, lr: float) -> None:
        """Store the metrics of a step."""
        self._steps.append((step, lr, metrics))

    def read(self) -> list[StepMetrics]:
        """Return the metrics since the last call, in order. This waits for the device."""
        steps, self._steps = self._steps, []
        rows = torch.stack([metrics.values for *_, metrics in steps]).tolist() if steps else []
        return [
            StepMetrics(step, lr, dict(zip(metrics.keys, row, strict=False)), *row[len(metrics.keys) :])
            for (step, lr, metrics), row in zip(steps, rows, strict=True)
        ]


class TrainingStep:
    """The forward and backward passes of an optimizer step, and its update.

    The `model` is on `device`, in training mode. The `optimizer` obeys `found_inf` (`measure`).
    """

    def __init__(
        self, config: Config, model: ParallelModel, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.config, self.model, self.optimizer, self.device = config, model, optimizer, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.dtype == "float16")
        self.metrics = StepMetricsBuffer(device)
        self._rows = used_rows(model.model).values()

    def make(self, batches: Iterable[tuple[Tensor, Tensor]], step: int, lr: float) -> None:
        """Make one optimizer step from the (B, T) ids and targets of its micro-batches. The optimizer has `lr`."""
        self.update(self.losses(batches), step, lr)

    def losses(self, batches: Iterable[tuple[Tensor, Tensor]]) -> list[HeadLoss]:
        """Return the losses of the micro-batches of a step, and add up their gradients."""
        last = self.config.train.grad_accum_steps - 1
        return [self.forward_backward(*batch, is_last=number == last) for number, batch in enumerate(batches)]

    def forward_backward(self, input_ids: Tensor, targets: Tensor, is_last: bool) -> HeadLoss:
        """Add the gradient of one micro-batch, and return its loss (of this process's part of the targets).

        `input_ids` and `targets` are (B, T) on the device. DDP sums the gradients in the last micro-batch of a step.
        """
        train = self.config.train
        counted = count_targets(targets, self.model.process_group)
        with self.model.micro_step(is_last):
            with autocast(self.device, train.dtype):
                loss = self.model.mean_loss(input_ids, targets, counted)
            self.scaler.scale(loss.objective() / train.grad_accum_steps).backward()
        return loss

    def update(self, losses: list[HeadLoss], step: int, lr: float) -> None:
        """Clip the gradient and update the weights. The optimizer has `lr` already. It skips steps that diverged."""
        self.record(self.apply(losses), step, lr)

    def apply(self, losses: list[HeadLoss]) -> DeviceMetrics:
        """Clip the gradient and update the weights. This is all work of the device, the same in every step.

        With `train.dtype=float16` the gradient is divided by the scale of the loss before that.
        """
        losses = self.model.add_up(losses)
        loss_scale = self.scaler.scale(torch.ones(1, device=self.device)) if self.scaler.is_enabled() else None
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.model.model, self.config.optim.grad_clip)
        metrics = measure(self.optimizer, losses, grad_norm, loss_scale)
        self.optimizer.step()  # not the scaler's: on most optimizers it waits for the device
        for rows in self._rows:
            rows.share()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return metrics

    def record(self, metrics: DeviceMetrics, step: int, lr: float) -> None:
        """Do what differs from step to step after `apply`: late decay, the average of the weights, and the metrics."""
        for rows in self._rows:
            rows.note_decay(self.optimizer, lr)
        if self.config.optim.ema:
            update_average(self.optimizer, self.config.optim.ema, step)
        self.metrics.add(metrics, step, lr)
