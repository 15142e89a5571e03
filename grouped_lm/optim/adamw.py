"""AdamW, for all rows of a table or those that a step touches, and its schedule.

Letters: D width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.config import OptimConfig
from grouped_lm.distributed.process_group import is_sharded, local_tensor
from grouped_lm.heads.base import Head


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return parameters to decay and not: norms, biases, and what a module lists in `no_weight_decay` are not."""
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


class SparseRowsAdamW(torch.optim.AdamW):
    """AdamW that leaves alone those rows of given tables, and of their averages, whose gradient is all zero.

    This is not dense AdamW: there, a row without a gradient still decays and drifts on by its momentum, and its
    averages fade. Here it stands still until it is touched again, as in torch's SparseAdam; `step` counts for the whole
    table. A step moves the bytes of the rows it touches, and reads the (V, D) gradient once to find them.

    Args:
        groups: as torch's, tables among them.
        tables: parameters of (V, D) that are updated by rows.
        options: as torch's.
    """

    def __init__(self, groups: list[dict[str, Any]], tables: list[nn.Parameter], **options: Any) -> None:
        super().__init__(groups, **options)
        self._tables = {id(table) for table in tables}

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """See torch's; gradients are left as they were."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self._tables and parameter.grad is not None:
                    held.append((parameter, parameter.grad))
                    self._step_rows(parameter, group)
                    parameter.grad = None  # the fused step passes it by
        super().step()
        for parameter, grad in held:
            parameter.grad = grad
        return loss

    @torch.no_grad()
    def _step_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[table], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        here = [
            local_tensor(t) for t in (table.grad, state["exp_avg"], state["exp_avg_sq"], table)
        ]  # of shards, own rows
        passed_over = getattr(self, "found_inf", None)  # as torch's fused step has it: 1 for a step to leave out
        touched = torch.linalg.vector_norm(here[0], math.inf, dim=1) > 0
        if passed_over is not None:
            state["step"] -= passed_over
            touched &= passed_over == 0
        rows = touched.nonzero().squeeze(1)
        part, first, second, weight = (t[rows] for t in here)
        first.lerp_(part, 1 - beta1)
        second.mul_(beta2).addcmul_(part, part, value=1 - beta2)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        spread = second.sqrt().div_((1 - beta2 ** state["step"]).sqrt()).add_(group["eps"])
        weight.sub_(first / spread * (group["lr"] / (1 - beta1 ** state["step"])))
        for whole, values in zip(here[1:], (first, second, weight), strict=True):
            whole.index_copy_(0, rows, values)


def token_tables(model: nn.Module) -> list[nn.Parameter]:
    """Return the matrices that have a row per token: the input embedding, and those of untied heads."""
    sizes = {module.vocab_size for module in model.modules() if isinstance(module, Head)}
    return [p for p in model.parameters() if p.ndim == 2 and p.shape[0] in sizes]


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.AdamW:
    """Build torch's fused AdamW over the two kinds of parameters, or `SparseRowsAdamW` where the config asks for it."""
    groups = []
    for parameters, weight_decay in zip(split_by_decay(model), (config.weight_decay, 0.0), strict=True):
        for sharded in (False, True):  # the fused update takes one kind at a time
            kind = [parameter for parameter in parameters if is_sharded(parameter) == sharded]
            groups += [{"params": kind, "weight_decay": weight_decay}] if kind else []
    options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}
    if config.sparse_rows:
        return SparseRowsAdamW(groups, token_tables(model), **options)
    return torch.optim.AdamW(groups, **options)


def learning_rate(config: OptimConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of update `step` in [0, max_steps): linear rise, then a cosine down to the floor.

    lr * (floor + (1 - floor) * (1 + cos(pi * t)) / 2), t from 0 after warm-up to 1 at the last step.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps)
    floor = config.min_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
