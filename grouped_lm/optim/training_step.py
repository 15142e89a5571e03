"""One optimizer step. Training runs it on data, and `gvc plan` runs it on tensors without data.

Letters: B windows, T tokens of a window.
"""

import torch
from torch import Tensor

from grouped_lm.config import Config
from grouped_lm.distributed.parallel import ParallelModel, clip_gradients, count_targets
from grouped_lm.heads.losses.functional import HeadLoss
from grouped_lm.optim.step_metrics import StepMetricsBuffer
from grouped_lm.system.precision import autocast


class TrainingStep:
    """The forward and backward passes of an optimizer step, and its update.

    Args:
        config: dtype, gradient accumulation and clipping.
        model: on `device`, in training mode.
        optimizer: of the model's parameters. It obeys `found_inf` (`StepMetricsBuffer.add`).
        device: the model's.
    """

    def __init__(
        self, config: Config, model: ParallelModel, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.config, self.model, self.optimizer, self.device = config, model, optimizer, device
        self.metrics = StepMetricsBuffer(device)

    def forward_backward(self, input_ids: Tensor, targets: Tensor, is_last: bool) -> HeadLoss:
        """Add the gradient of one micro-batch, and return its loss (of this process's part of the targets).

        Args:
            input_ids: (B, T) on the device.
            targets: (B, T) on the device.
            is_last: whether this is the last micro-batch of the step. DDP then sums the gradients.
        """
        train = self.config.train
        counted = count_targets(targets, self.model.process_group)
        with self.model.micro_step(is_last):
            with autocast(self.device, train.dtype):
                loss = self.model.mean_loss(input_ids, targets, counted)
            (loss.objective() / train.grad_accum_steps).backward()
        return loss

    def update(self, losses: list[HeadLoss], step: int, lr: float) -> None:
        """Clip the gradient and update the weights. The optimizer skips a step that is not finite.

        Args:
            losses: of the micro-batches.
            step: steps done before this one.
            lr: learning rate, already set in the optimizer.
        """
        losses = self.model.add_up(losses)
        grad_norm = clip_gradients(self.model.model, self.config.optim.grad_clip)
        self.metrics.add(self.optimizer, losses, grad_norm, step, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
