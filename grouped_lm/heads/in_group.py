"""The softmax inside each target's own group, over the tokens' own weight rows, all groups in one autograd function.

Under plain autograd a slice of the (V, D) table per group allocates a (V, D) gradient per group; here every group
writes its part of one. The slow line that it equals is `TwoLevelHead.token_logits` of `class_full`, which gathers
(N, S, D) rows.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group, K tokens outside the groups.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from grouped_lm.heads.base import at_least_fp32


class GroupRows(nn.Module):
    """Where each group's rows lie in a (V, D) table: a slice where its ids follow each other, else the ids.

    Args:
        token_to_group: (V,) int64, -1 for tokens outside the groups.
        token_to_slot: (V,) int64, the order within a group, and among the tokens outside.
    """

    grouped: Tensor
    outside: Tensor

    def __init__(self, token_to_group: Tensor, token_to_slot: Tensor) -> None:
        super().__init__()
        self.register_buffer("grouped", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("outside", torch.empty(0, dtype=torch.int64), persistent=False)
        self.assign(token_to_group, token_to_slot)

    def assign(self, token_to_group: Tensor, token_to_slot: Tensor) -> None:
        """Sort the ids by group and slot; needed again when the grouping was loaded."""
        width = int(token_to_slot.max()) + 1
        order = torch.argsort(token_to_group * width + token_to_slot)
        sizes = torch.bincount(token_to_group + 1).tolist()
        self.outside, self.grouped = order[: sizes[0]], order[sizes[0] :]
        self.starts = [0]
        for size in sizes[1:]:
            self.starts.append(self.starts[-1] + size)
        self._members: Tensor | None = None
        self.in_id_order = torch.equal(self.grouped, torch.arange(order.numel(), device=order.device))

    @property
    def n_group(self) -> int:
        """G."""
        return len(self.starts) - 1

    def members(self) -> Tensor:
        """Return (G, S) ids of every group in the order of its slots, -1 where it has none; made when first asked."""
        if self._members is None or self._members.device != self.grouped.device:
            sizes = [stop - start for start, stop in itertools.pairwise(self.starts)]
            groups = self.grouped.split(sizes) if sizes else [self.grouped]
            self._members = pad_sequence(groups, batch_first=True, padding_value=-1)[: self.n_group]
        return self._members

    def take(self, table: Tensor, group: int) -> Tensor:
        """Return the (S, ...) rows of `group`, in the order of its slots; a view where it can be one."""
        rows = slice(self.starts[group], self.starts[group + 1])
        return table[rows] if self.in_id_order else table.index_select(0, self.grouped[rows])

    def put(self, table: Tensor, group: int, values: Tensor) -> None:
        """Write the (S, ...) rows of `group`.

        With indexing instead of index_select and index_copy_ a pass over 225 groups by frequency took 55 ms, not 43.
        """
        rows = slice(self.starts[group], self.starts[group + 1])
        if self.in_id_order:
            table[rows] = values
        else:
            table.index_copy_(0, self.grouped[rows], values.to(table.dtype))


class _InGroupLoss(torch.autograd.Function):
    """See `in_group_loss`. Rows are taken group by group; kept for the backward pass are their softmax errors."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        rows: GroupRows,
        groups: Tensor,
        slots: Tensor,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.argsort(groups)
        states, slots = hidden[place], slots[place]
        nll = at_least_fp32(hidden.new_zeros(groups.shape))
        hits = torch.zeros_like(groups, dtype=torch.bool)
        pieces = list(_pieces(groups, rows.n_group))
        errors = []
        dtype = hidden.dtype
        for group, start, stop in pieces:
            target = slots[start:stop, None]
            logits = F.linear(states[start:stop], rows.take(weight, group), rows.take(bias, group))
            dtype, log_p = logits.dtype, at_least_fp32(logits).log_softmax(-1)
            nll[start:stop] = -log_p.gather(1, target).squeeze(1)
            hits[start:stop] = log_p.argmax(-1) == target.squeeze(1)
            if keep:
                errors.append(log_p.exp_().scatter_add_(1, target, log_p.new_full((1, 1), -1.0).expand_as(target)))
        ctx.rows, ctx.pieces, ctx.dtype = rows, pieces, dtype
        ctx.save_for_backward(hidden, weight, bias, place, *errors)
        nll, hits = _unsort(nll, place), _unsort(hits, place)
        ctx.mark_non_differentiable(hits)
        return nll, hits, weight.index_select(0, rows.outside)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_nll: Tensor, _hits: Tensor, d_outside: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, place, *errors = ctx.saved_tensors
        rows: GroupRows = ctx.rows
        states, scale = hidden[place].to(ctx.dtype), d_nll[place].unsqueeze(1)
        d_states, d_weight, d_bias = (torch.zeros_like(t) for t in (hidden, weight, bias))
        for (group, start, stop), error in zip(ctx.pieces, errors, strict=True):
            d_logits = (error * scale[start:stop]).to(ctx.dtype)  # the matrix products run in the forward's dtype
            d_states[start:stop] = d_logits @ rows.take(weight, group).to(ctx.dtype)
            rows.put(d_weight, group, d_logits.T @ states[start:stop])
            rows.put(d_bias, group, d_logits.sum(0, dtype=bias.dtype))
        d_weight.index_copy_(0, rows.outside, d_outside)
        return _unsort(d_states, place), d_weight, d_bias, None, None, None, None


def _unsort(values: Tensor, place: Tensor) -> Tensor:
    """Return the rows in the order from which `place` sorted them."""
    return torch.empty_like(values).index_copy_(0, place, values)


def _pieces(groups: Tensor, n_group: int) -> Any:
    """Yield (group, start, stop) of each group present, in rows sorted by group; one wait for the device."""
    stop, *sizes = torch.bincount(groups + 1, minlength=n_group + 1).tolist()
    for group, size in enumerate(sizes):
        start, stop = stop, stop + size
        if size:
            yield group, start, stop


@torch.compiler.disable
def in_group_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, rows: GroupRows, groups: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -log p(token | its group) per row, which rows have the likeliest token, and the rows of other tokens.

    logits = W[ids of the group] h + bias[ids of the group]. Between forward and backward it holds N S numbers at most.

    Args:
        hidden: (N, D).
        weight: (V, D), a row per token.
        bias: (V,).
        rows: which of them belong to which group.
        groups: (N,) int64 in [0, G), or -1 for rows that have no part in this.
        slots: (N,) int64, the target's place in its group.

    Returns:
        (N,) nats in fp32 or finer, zero where the group is -1; (N,) bool; (K, D), the rows of the tokens outside the
        groups, picked here so that their gradient goes to the same (V, D) buffer.
    """
    return _InGroupLoss.apply(hidden, weight, bias, rows, groups, slots, torch.is_grad_enabled())
