"""The softmax inside groups alone, for heads whose first softmax the other kernels do not have.

It equals `forward_by_borders` and `backward_by_borders`, which need a copy of the whole table in each pass, in the
order of the groups and the type of the products.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

import torch
from torch import Tensor

from grouped_lm.heads.losses.in_group import Inputs, Places
from grouped_lm.heads.losses.kernels import TABLE_TOKENS
from grouped_lm.heads.losses.kernels.inside import Groups, Scale, inside_losses, table_gradient
from grouped_lm.heads.losses.kernels.route import route
from grouped_lm.heads.losses.kernels.tiles import launching_on


def forward(inputs: Inputs, places: Places, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (N,) nats and (N,) hits, as `forward_by_borders` does."""
    hidden, (members, groups, slots) = inputs[0], places
    nll = hidden.new_zeros(groups.shape[0], dtype=torch.float32)
    hits = torch.zeros_like(groups, dtype=torch.bool)
    if groups.numel():
        with launching_on(hidden.device):
            way = route(groups, None, 0, members.shape[0])
            inside_losses(_groups(inputs, members, dtype), way, slots, nll, hits)
    return nll, hits


def backward(d_nll: Tensor, inputs: Inputs, places: Places, dtype: torch.dtype) -> Inputs:
    """Return the (N, D), (V, D) and (V,) gradients for (N,) d_nll, as `backward_by_borders` does."""
    hidden, weight, bias = inputs
    members, groups, slots = places
    to = torch.zeros_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
    if not groups.numel():
        return to
    given, d_nll = _groups(inputs, members, dtype), d_nll.contiguous()
    with launching_on(hidden.device):
        way = route(groups, None, 0, members.shape[0])
        mass = inside_losses(given, way, slots, torch.empty_like(d_nll), d_states=to[0], weights=d_nll)
        table_gradient(given, way, slots, mass, _work(members), Scale(weights=d_nll), None, (*to[1:], to[2]))
    return to


def _groups(inputs: Inputs, members: Tensor, dtype: torch.dtype) -> Groups:
    """Return the groups with all S slots of each; the ids of padding slots are negative."""
    hidden, weight, bias = inputs
    n_group, n_slot = members.shape
    starts = n_slot * torch.arange(n_group + 1, dtype=torch.int32, device=members.device)
    return Groups(hidden.contiguous(), weight.contiguous(), bias, members.flatten(), 0, starts, dtype)


def _work(members: Tensor) -> Tensor:
    """Return the blocks of `table_gradient`: all slots of every group, some at a time."""
    n_group, n_slot = members.shape
    start = torch.arange(0, n_slot, TABLE_TOKENS, dtype=torch.int32, device=members.device)
    group = torch.arange(n_group, dtype=torch.int32, device=members.device).repeat_interleave(len(start))
    start = start.repeat(n_group)
    return torch.stack([group, group * n_slot + start, (n_slot - start).clamp_max(TABLE_TOKENS)], 1)
