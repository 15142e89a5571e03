"""AdamW and its schedule."""

import math

import torch
from torch import nn

from grouped_lm.config import OptimConfig
from grouped_lm.heads.base import Head


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return parameters to decay and not: norms, biases, and what a head lists in `no_weight_decay` are not."""
    exempt = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, Head)
        for name, parameter in module.named_parameters(recurse=False)
        if name in module.no_weight_decay
    }
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        (rest if parameter.ndim < 2 or id(parameter) in exempt else decay).append(parameter)
    return decay, rest


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.AdamW:
    """Build torch's fused AdamW over the two kinds of parameters."""
    decay, rest = split_by_decay(model)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of update `step` in [0, max_steps): linear rise, then a cosine down to the floor.

    lr * (floor + (1 - floor) * (1 + cos(pi * t)) / 2), t from 0 after warm-up to 1 at the last step.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps)
    floor = config.min_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
