"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), and an AdamW that updates only the touched rows of a table.

Letters: D width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.config import AdamWConfig
from grouped_lm.distributed.process_group import is_sharded, local_tensor
from grouped_lm.heads.base import Head
from grouped_lm.optim.used_rows import used_rows


class SparseRowsAdamW(torch.optim.AdamW):
    """AdamW that skips the rows of given tables whose gradient is zero.

    This is not dense AdamW. There, a row without a gradient still decays, moves by its momentum, and its averages fade.
    Here the row and its averages stay as they are, as in torch's SparseAdam. `step` counts for the whole table. An
    update moves the bytes of the touched rows, and reads the (V, D) gradient once to find them.

    The `groups` hold all parameters, the `tables` of (V, D) among them. `options` are those of torch's AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], tables: list[nn.Parameter], **options: Any) -> None:
        super().__init__(groups, **options)
        self._tables = {id(table) for table in tables}

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters, and leave the gradients as they are."""
        loss = None if closure is None else torch.enable_grad()(closure)()
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
    """Return the matrices that have a row per token: the input embedding, and those of untied heads.

    Matrices with rows for some tokens only are left out: those of `head=adaptive`, whose classes are split, and that of
    `head.own_shortlist=true`. (`head=trim` has a row for each token of its own vocabulary.)
    """
    found = {id(parameter) for parameter in used_rows(model)}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "wte":
            found |= {id(p) for p in module.parameters(recurse=False) if p is getattr(module, "weight", None)}
        if isinstance(module, Head):
            sizes = module.vocab_size, module.token_rows()
            found |= {id(p) for p in module.parameters() if p.ndim == 2 and p.shape[0] in sizes}
    return [parameter for parameter in model.parameters() if id(parameter) in found]


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters with weight decay, and those without: norms, biases, and a module's `no_weight_decay`."""
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim < 2 or name in getattr(module, "no_weight_decay", ())
    }
    parameters = list(model.parameters())
    return [p for p in parameters if id(p) not in exempt], [p for p in parameters if id(p) in exempt]


def decay_groups(
    model: nn.Module,
    weight_decay: float,
    leave_out: Iterable[nn.Parameter] = (),
    table_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return AdamW's groups of all parameters but `leave_out`: by their weight decay, in shards or whole."""
    others = {id(parameter) for parameter in leave_out}
    decayed, exempt = split_by_decay(model)
    tables = set() if table_decay is None else {id(table) for table in token_tables(model)}
    parts = [
        ([p for p in decayed if id(p) not in tables], weight_decay),
        ([p for p in decayed if id(p) in tables], table_decay),
        (exempt, 0.0),
    ]
    groups = []
    for parameters, decay in parts:
        for sharded in (False, True):  # torch's fused update takes one kind at a time
            kind = [p for p in parameters if is_sharded(p) == sharded and id(p) not in others]
            groups += [{"params": kind, "weight_decay": decay}] if kind else []
    return groups


def build_adamw(config: AdamWConfig, model: nn.Module) -> torch.optim.AdamW:
    """Build torch's fused AdamW, or `SparseRowsAdamW` where the config asks for it."""
    groups = decay_groups(model, config.weight_decay, table_decay=config.table_weight_decay)
    options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}
    if config.sparse_rows:
        return SparseRowsAdamW(groups, token_tables(model), **options)
    return torch.optim.AdamW(groups, **options)
