"""Rows of the token table that training cannot reach are left out of its gradient and of the optimizer.

The rows of tokens that the training text never has get no gradient from the embedding or from a compressed head. Dense
AdamW keeps their averages at 0 and multiplies them by 1 - lr * weight_decay in every step. Here that is done later:
before they are read, they are multiplied by the same factors, one after another, so to the same bits. (The product of
the factors would be one rounding instead of many, and a run that is saved at other steps would have other bits.)

Letters: D width, V vocabulary, U used rows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import Config
from grouped_lm.models.lm import LanguageModel

OPTIMIZERS_THAT_DECAY = ("adamw", "muon")
"""Optimizers that only multiply a row without gradients by 1 - lr * weight_decay."""
LARGEST_SHARE = 0.75
"""Largest U / V: copies of used rows cost as much as the rest saves near 0.9."""
LEAST_UNUSED = 2**18
"""Least numbers in unused rows, 1 MiB."""
CHUNK = 2**17
"""Numbers that decay at once: they stay in a processor's cache."""


class UsedRows(nn.Module):
    """An input embedding, (V, D), whose parameter `weight` has the U rows `ids` of its `table` alone.

    `weight` is newer than `table` until `update_table`. `eval()` and `state_dict()` call that, and `state_dict()` has
    the whole table. A head that shares the table reads it in training too, so it is then updated after every step.
    """

    table: Tensor  # (V, D)
    ids: Tensor  # (U,) int64
    row_of: Tensor  # (V,) int64 place in `ids`, -1 for unused rows
    unused: Tensor  # (V - U,) int64

    def __init__(self, table: Tensor, ids: Tensor) -> None:
        super().__init__()
        row_of = torch.full((len(table),), -1, device=ids.device).index_copy_(0, ids, torch.arange(len(ids)).to(ids))
        buffers = {"table": table.detach(), "ids": ids, "row_of": row_of, "unused": (row_of < 0).nonzero().squeeze(1)}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        self.weight = nn.Parameter(self.table[ids])
        self.shared = False
        self._factors: list[Tensor] = []
        self.register_state_dict_post_hook(_save_table)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map (...) int64 ids in [0, V) to (..., D). In training they are among the used ones."""
        if self.training:
            return F.embedding(self.row_of[input_ids], self.weight)
        return F.embedding(input_ids, self.table)

    def share_with(self, head: nn.Module, name: str) -> None:
        """Give the head the table instead of its parameter `name`. Gradients of it go to `weight`."""
        self.shared = True
        delattr(head, name)
        setattr(head, name, self.table)
        head.register_forward_pre_hook(lambda head, _: setattr(head, name, self._trained_table()))
        head.register_forward_hook(lambda head, *_: setattr(head, name, self.table), always_call=True)

    def _trained_table(self) -> Tensor:
        if not self.training or not torch.is_grad_enabled():
            return self.table
        table: Tensor = _Table.apply(self.weight, self.table, self.ids, self.row_of)
        return table

    @torch.no_grad()
    def share(self) -> None:
        """Give the weights after an update to a head that shares the table."""
        if self.shared:
            self.table.index_copy_(0, self.ids, self.weight)

    @torch.no_grad()
    def note_decay(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Note the decay of the unused rows in the update that the optimizer of `weight` has just made."""
        group = next(group for group in optimizer.param_groups if any(p is self.weight for p in group["params"]))
        if group["weight_decay"]:
            skip = getattr(optimizer, "found_inf", torch.zeros((), device=self.table.device))
            self._factors.append(torch.where(skip > 0, 1.0, 1 - lr * group["weight_decay"]))

    @torch.no_grad()
    def update_table(self) -> None:
        """Bring all rows of the table up to date."""
        self.table.index_copy_(0, self.ids, self.weight)
        factors, self._factors = torch.stack(self._factors).tolist() if self._factors else [], []
        for ids in self.unused.split(max(1, CHUNK // self.table.shape[1])) if factors else ():
            rows = self.table[ids]
            for factor in factors:
                rows.mul_(factor)
            self.table.index_copy_(0, ids, rows)

    def train(self, mode: bool = True) -> "UsedRows":
        """Set the training mode. Evaluation reads all rows."""
        if not mode:
            self.update_table()
        return super().train(mode)

    @torch.no_grad()
    def after_load(self) -> None:
        """Take the weights from a table that was loaded."""
        self._factors = []
        self.weight.copy_(self.table[self.ids])

    def spread(self, values: Tensor) -> Tensor:
        """Return (U, D) values of the optimizer as (V, D), 0 in unused rows, and other tensors as they are."""
        if values.shape != self.weight.shape:
            return values
        return values.new_zeros(self.table.shape).index_copy_(0, self.ids, values)

    def pick(self, values: Tensor) -> Tensor:
        """Return the used rows of (V, D) values of the optimizer, and other tensors as they are."""
        return values[self.ids] if values.shape == self.table.shape else values


class _Table(torch.autograd.Function):
    """The table, as a function of its used rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, ids: Tensor, row_of: Tensor) -> Tensor:
        ctx.save_for_backward(ids, row_of)
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, d_table: Tensor) -> tuple[Tensor | None, ...]:
        ids, row_of = ctx.saved_tensors
        if not d_table.is_sparse:
            return d_table.index_select(0, ids), None, None, None
        places, values = row_of[d_table._indices()[0]], d_table._values()
        if not ids.is_cuda:  # torch adds it in place to the gradient of the embedding, which is dense
            shape = len(ids), values.shape[1]
            return torch.sparse_coo_tensor(places[None], values, shape, check_invariants=False), None, None, None
        return values.new_zeros(len(ids), values.shape[1]).index_add_(0, places, values), None, None, None


def _save_table(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(module, UsedRows)
    module.update_table()
    state[f"{prefix}weight"] = module.table


def used_rows(model: nn.Module) -> dict[nn.Parameter, UsedRows]:
    """Return the modules of a model that leave rows out, by their parameters."""
    return {module.weight: module for module in model.modules() if isinstance(module, UsedRows)}


def leave_out_unused_rows(
    config: Config, model: LanguageModel, count_tokens: Callable[[], np.ndarray]
) -> UsedRows | None:
    """Replace the input embedding by `UsedRows`, if that pays, and return it. The optimizer is built later.

    `count_tokens` gives the (V,) occurrences in the training text.
    """
    wte, head = model.body.wte, model.head
    sparse = getattr(config.optim, "sparse_rows", False)  # leaves these rows as they are
    if not isinstance(wte, nn.Embedding) or config.optim.name not in OPTIMIZERS_THAT_DECAY or sparse:
        return None
    shared = [name for name, parameter in head.named_parameters() if parameter is wte.weight]
    n_row, width = wte.weight.shape
    used = torch.from_numpy(count_tokens() > 0).to(wte.weight.device)
    in_head = head.trained_ids(used) if shared else used[:0].nonzero().squeeze(1)
    if in_head is None:
        return None
    used[in_head] = True
    ids = used.nonzero().squeeze(1)  # ascending, as in the whole table: the norm of the gradient keeps its bits
    if len(ids) > LARGEST_SHARE * n_row or (n_row - len(ids)) * width < LEAST_UNUSED:
        return None
    rows = model.body.wte = UsedRows(wte.weight, ids)
    for name in shared:
        rows.share_with(head, name)
    return rows
