"""AdamW that updates only the rows of a table that a step touches.

Letters: D width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.distributed.process_group import local_tensor
from grouped_lm.heads.base import Head


class SparseRowsAdamW(torch.optim.AdamW):
    """AdamW that skips the rows of given tables whose gradient is zero.

    This is not dense AdamW. There, a row without a gradient still decays, moves by its momentum, and its averages fade.
    Here the row and its averages stay as they are, as in torch's SparseAdam. `step` counts for the whole table. An
    update moves the bytes of the touched rows, and reads the (V, D) gradient once to find them.

    Args:
        groups: parameter groups as torch's AdamW takes them, with the tables.
        tables: parameters of (V, D) to update by rows.
        options: as torch's AdamW takes them.
    """

    def __init__(self, groups: list[dict[str, Any]], tables: list[nn.Parameter], **options: Any) -> None:
        super().__init__(groups, **options)
        self._tables = {id(table) for table in tables}

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters, and leave the gradients as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        table_grads: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self._tables and parameter.grad is not None:
                    table_grads.append((parameter, parameter.grad))
                    self._step_rows(parameter, group)
                    parameter.grad = None  # the fused update then skips this parameter
        super().step()
        for parameter, grad in table_grads:
            parameter.grad = grad
        return loss

    @torch.no_grad()
    def _step_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[table], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        grad, *stored = (local_tensor(t) for t in (table.grad, state["exp_avg"], state["exp_avg_sq"], table))
        skip = getattr(self, "found_inf", None)  # as torch's fused update reads it: 1 for a step to leave out
        touched = torch.linalg.vector_norm(grad, math.inf, dim=1) > 0
        if skip is not None:
            state["step"] -= skip
            touched &= skip == 0
        rows = touched.nonzero().squeeze(1)
        row_grad, first, second, weight = grad[rows], *(t[rows] for t in stored)
        first.lerp_(row_grad, 1 - beta1)
        second.mul_(beta2).addcmul_(row_grad, row_grad, value=1 - beta2)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        scale = second.sqrt().div_((1 - beta2 ** state["step"]).sqrt()).add_(group["eps"])
        weight.sub_(first / scale * (group["lr"] / (1 - beta1 ** state["step"])))
        for target, values in zip(stored, (first, second, weight), strict=True):
            target.index_copy_(0, rows, values)


def token_tables(model: nn.Module) -> list[nn.Parameter]:
    """Return the matrices that have a row per token: the input embedding, and those of untied heads."""
    sizes = {module.vocab_size for module in model.modules() if isinstance(module, Head)}
    return [p for p in model.parameters() if p.ndim == 2 and p.shape[0] in sizes]
