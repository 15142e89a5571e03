"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from grouped_lm.config import AdamWConfig
from grouped_lm.distributed.process_group import is_sharded
from grouped_lm.optim.sparse_adamw import SparseRowsAdamW, token_tables


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters with and without weight decay.

    Norms, biases and the parameters that a module lists in `no_weight_decay` have none.
    """
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name in getattr(module, "no_weight_decay", ())
    }
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        (rest if parameter.ndim < 2 or id(parameter) in exempt else decay).append(parameter)
    return decay, rest


def decay_groups(model: nn.Module, weight_decay: float, leave_out: Iterable[nn.Parameter] = ()) -> list[dict[str, Any]]:
    """Return the parameter groups of AdamW: with and without weight decay, in shards or whole.

    Args:
        model: the model.
        weight_decay: of the groups that have any.
        leave_out: parameters that another optimizer updates.
    """
    others = {id(parameter) for parameter in leave_out}
    groups = []
    for parameters, decay in zip(split_by_decay(model), (weight_decay, 0.0), strict=True):
        for sharded in (False, True):  # torch's fused update takes one kind at a time
            kind = [p for p in parameters if is_sharded(p) == sharded and id(p) not in others]
            groups += [{"params": kind, "weight_decay": decay}] if kind else []
    return groups


def build_adamw(config: AdamWConfig, model: nn.Module) -> torch.optim.AdamW:
    """Build torch's fused AdamW, or `SparseRowsAdamW` where the config asks for it."""
    groups = decay_groups(model, config.weight_decay)
    options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}
    if config.sparse_rows:
        return SparseRowsAdamW(groups, token_tables(model), **options)
    return torch.optim.AdamW(groups, **options)
