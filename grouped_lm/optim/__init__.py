"""Optimizers by name, and their learning rate.

An optimizer is one file with a schema and a builder, one line in `OPTIMIZERS`, and one YAML in conf/optim/. The builder
returns one `torch.optim.Optimizer` that

- keeps per-parameter tensors in `state`, which a checkpoint saves;
- leaves weights and state as they are where its attribute `found_inf` is 1 (`training_step.measure` sets it);
- may give a parameter group an "lr_factor", by which `set_learning_rate` multiplies the learning rate.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.config import AdamWConfig, OptimConfig, parse_named
from grouped_lm.optim.adamw import build_adamw
from grouped_lm.optim.muon import MuonConfig, build_muon

OPTIMIZERS: dict[str, tuple[type, Callable[[Any, nn.Module], torch.optim.Optimizer]]] = {
    "adamw": (AdamWConfig, build_adamw),
    "muon": (MuonConfig, build_muon),
}
"""Schema and builder of every optimizer, by the name in `optim=NAME`."""


def parse_optim_config(values: Any) -> OptimConfig:
    """Return the config object of the optimizer that `values["name"]` names. Wrong values raise a ConfigError."""
    return parse_named({name: schema for name, (schema, _) in OPTIMIZERS.items()}, values, "optim")


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that `config` describes, over all parameters of `model`."""
    return OPTIMIZERS[config.name][1](config, model)


def learning_rate(config: OptimConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of update `step` in [0, max_steps): linear warm-up, then cosine decay to the floor.

    lr * (floor + (1 - floor) * (1 + cos(pi * t)) / 2), where t goes from 0 after warm-up to 1 at the last step. The
    floor needs two steps after warm-up.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps)
    floor = config.min_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times the group's "lr_factor" if it has one.

    A learning rate that is a tensor stays that tensor, which a CUDA graph has recorded.
    """
    for group in optimizer.param_groups:
        own = lr * group.get("lr_factor", 1.0)
        group["lr"] = group["lr"].fill_(own) if isinstance(group["lr"], Tensor) else own
