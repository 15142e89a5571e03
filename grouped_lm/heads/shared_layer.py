"""Two-step heads whose second step is one linear layer for all groups, with a scale and a shift of each on either side.

Letters: N tokens, D width, G groups, S slots per group.
"""

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor

from grouped_lm.heads.losses.shared_nll import SharedLayer, shared_nll
from grouped_lm.heads.two_level import TwoLevelHead


class SharedLayerHead(TwoLevelHead):
    """What `grouped` and `film` have in common; `layer` tells them apart."""

    @abstractmethod
    def layer(self) -> SharedLayer:
        """Return the weights of the second step."""

    def token_logits(self, hidden: Tensor, groups: Tensor) -> Tensor:
        """See `TwoLevelHead.token_logits`: the slow line that `shared_nll` equals."""
        layer, states = self.layer(), hidden
        if layer.inner is not None:
            scale, shift = layer.inner
            states = F.embedding(groups, scale) * hidden + F.embedding(groups, shift)
        logits = F.linear(states, layer.weight)
        if layer.outer is not None:
            logits = F.embedding(groups, layer.outer) * logits
        return logits + F.embedding(groups, layer.table)

    def all_token_logits(self, hidden: Tensor) -> Tensor:
        """See `TwoLevelHead.all_token_logits`."""
        layer, states = self.layer(), hidden.unsqueeze(1)
        if layer.inner is not None:
            scale, shift = layer.inner
            states = scale * states + shift
        logits = F.linear(states, layer.weight)
        return (logits if layer.outer is None else layer.outer * logits) + layer.table

    def summed(self, states: Tensor, groups: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """See `TwoLevelHead.summed`; the gradient of both comes with the second."""
        total, group_total = shared_nll(states, self.group.weight, self.group.bias, self.layer(), groups, slots)
        return group_total, total - group_total
