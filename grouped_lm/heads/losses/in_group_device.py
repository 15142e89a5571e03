"""The passes of `in_group` as grouped matrix products. The device reads the borders of groups, so the host never waits.

They equal the loops of `in_group`, which are faster on a CPU. `F.grouped_mm` takes fp32, bf16 and fp16, and rows of a
multiple of 16 bytes.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_lm.heads.losses.functional import at_least_fp32


def sort_by_group(groups: Tensor, n_group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the order of the rows by group (rows without a group last), their groups, which have one, and the ends.

    Args:
        groups: (N,) int64 in [0, G), or -1 for rows of no group.
        n_group: G.

    Returns:
        (N,) int64; (N,) int64 in [0, G); (N,) bool; (G,) int32.
    """
    key = torch.where(groups < 0, n_group, groups)
    place = torch.argsort(key)
    key = key[place]
    ends = torch.searchsorted(key, torch.arange(n_group, device=key.device), right=True).to(torch.int32)
    return place, key.clamp_max(n_group - 1), key < n_group, ends


def group_tables(weight: Tensor, members: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the (G, S, D) rows of every group's tokens, any row at padding slots."""
    rows = weight.index_select(0, members.clamp_min(0).flatten())
    return rows.unflatten(0, members.shape).to(dtype)


def forward_by_borders(
    hidden: Tensor, weight: Tensor, bias: Tensor, members: Tensor, groups: Tensor, slots: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the (N,) nats and (N,) hits of `in_group_loss`."""
    place, own, counted, ends = sort_by_group(groups, members.shape[0])
    target = slots[place].masked_fill(~counted, 0).unsqueeze(1)
    log_p = log_softmax_by_borders(hidden[place], weight, bias, members, (own, counted, ends), dtype)
    nll = -log_p.gather(1, target).squeeze(1) * counted
    hits = (log_p.argmax(-1) == target.squeeze(1)) & counted
    nll, hits = (torch.empty_like(values).index_copy_(0, place, values) for values in (nll, hits))
    return nll, hits


def log_softmax_by_borders(
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    members: Tensor,
    borders: tuple[Tensor, Tensor, Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """Return (N, S) log-probabilities of (N, D) states sorted by group, `borders` being the rest of `sort_by_group`."""
    own, counted, ends = borders
    tables = group_tables(weight, members, dtype)
    logits = at_least_fp32(F.grouped_mm(states.to(dtype), tables.transpose(1, 2), offs=ends))
    shift = bias[members.clamp_min(0)].masked_fill(members < 0, -torch.inf)
    return torch.where(counted[:, None], logits + shift[own], 0.0).log_softmax(-1)  # rows past the last end are noise


def backward_by_borders(
    d_nll: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    members: Tensor,
    groups: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the (N, D), (V, D) and (V,) gradients with respect to hidden, weight and bias."""
    place, own, counted, ends = sort_by_group(groups, members.shape[0])
    target = slots[place].masked_fill(~counted, 0).unsqueeze(1)
    exact = log_softmax_by_borders(hidden[place], weight, bias, members, (own, counted, ends), dtype).exp_()
    exact.scatter_add_(1, target, exact.new_full((1, 1), -1.0).expand_as(target))
    exact.mul_((d_nll[place] * counted).unsqueeze(1))
    d_logits = exact.to(dtype)
    d_states = F.grouped_mm(d_logits, group_tables(weight, members, dtype), offs=ends).to(hidden.dtype)
    d_states = torch.where(counted[:, None], d_states, 0.0)
    d_tables = F.grouped_mm(d_logits.T, hidden[place].to(dtype), offs=ends)
    ids = members.clamp_min(0).flatten()  # padding slots add zeros to token 0
    d_weight = torch.zeros_like(weight).index_add_(0, ids, d_tables.flatten(0, 1).to(weight.dtype))
    d_shift = torch.zeros_like(members, dtype=exact.dtype).index_add_(0, own, exact)
    d_bias = weight.new_zeros(weight.shape[0]).index_add_(0, ids, d_shift.flatten().to(weight.dtype))
    return torch.empty_like(hidden).index_copy_(0, place, d_states), d_weight, d_bias
