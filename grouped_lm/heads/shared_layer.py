"""Two-step heads whose second step is one linear layer for all groups, with a scale and a shift of each group.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_lm.heads.losses.shared_nll import SharedLayer, shared_nll
from grouped_lm.heads.two_level import TwoLevelHead


class SharedLayerHead(TwoLevelHead):
    """The common part of `grouped` and `film`, which differ in `layer`."""

    @abstractmethod
    def layer(self) -> SharedLayer:
        """Return the weights of the second step."""

    def token_logits(self, hidden: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, S) logits of the slots of one group per row; the slow line that `shared_nll` equals."""
        layer, states = self.layer(), hidden
        if layer.inner is not None:
            scale, shift = layer.inner
            states = F.embedding(groups, scale) * hidden + F.embedding(groups, shift)
        logits = F.linear(states, layer.weight)
        if layer.outer is not None:
            logits = F.embedding(groups, layer.outer) * logits
        return logits + F.embedding(groups, layer.table)

    def all_token_logits(self, hidden: Tensor) -> Tensor:
        """Return the (N, G, S) logits of the slots of every group."""
        layer, states = self.layer(), hidden.unsqueeze(1)
        if layer.inner is not None:
            scale, shift = layer.inner
            states = scale * states + shift
        logits = F.linear(states, layer.weight)
        return (logits if layer.outer is None else layer.outer * logits) + layer.table

    def summed(self, states: Tensor, groups: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of both cross entropies; the gradient of both comes with the second."""
        total, group_total = shared_nll(states, self.group.weight, self.group.bias, self.layer(), groups, slots)
        return group_total, total - group_total

    def by_slot(self, values: Tensor) -> Tensor:
        """Return (V, ...) values of tokens as (G, S, ...), 0 at padding slots."""
        members = self.group_members()
        there = (members >= 0).reshape(*members.shape, *[1] * (values.ndim - 1))
        return values[members.clamp_min(0)] * there


def first_pair(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first singular pair of (K, A, B) matrices: (K, A), (K,) and (K, B)."""
    left, sizes, right = torch.linalg.svd(matrices.float(), full_matrices=False)
    dtype = matrices.dtype
    return left[:, :, 0].to(dtype), sizes[:, 0].to(dtype), right[:, 0].to(dtype)
