"""Two options of the default head: scale and shift inside a group, and the variance of a group's tokens.

Source: a scale and a shift per group on the states are one reading of arXiv 2411.06371 (`film`), here with full rows.
Letters: N states, D width, V vocabulary, K shortlist, G groups, H of them reserved.
"""

import torch
from torch import Tensor, nn

from grouped_lm.heads.context import Placement
from grouped_lm.heads.losses.functional import pick
from grouped_lm.heads.shortlist import ShortlistConfig, ShortlistHead


class ScaledHead(ShortlistHead):
    """`ShortlistHead` with h (1 + P[g]) + Q[g] inside group g, and s[g] / 2 sum_d var[g, d] h[d]^2 in its logit.

    `var[g]` is the variance of the shared rows of the group, as the mean row weights them. The mean row is the
    first-order term of the group's true logit, and this is the diagonal of the second one.
    """

    no_weight_decay = ("group_bias", "scale", "shift", "variance_scale")

    scale: nn.Parameter | None  # (G, D), P
    shift: nn.Parameter | None  # (G, D), Q
    variance_scale: nn.Parameter | None  # (G - H,), s

    def __init__(self, config: ShortlistConfig, weight: nn.Parameter, placement: Placement) -> None:
        super().__init__(config, weight, placement)
        self.scale = self.shift = self.variance_scale = None
        if config.inner_scale and self.n_group:
            self.scale = nn.Parameter(torch.zeros(self.n_group, self.n_embd))
            self.shift = nn.Parameter(torch.zeros(self.n_group, self.n_embd))
        if config.second_order and self.n_learned:
            self.variance_scale = nn.Parameter(torch.zeros(self.n_learned))

    @property
    def plain(self) -> bool:
        """Whether this is the default head, whose fast paths know neither addition."""
        return self.scale is None and self.variance_scale is None

    def inner_states(self, states: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, D) states inside the (N,) groups; those of group -1 mean nothing."""
        if self.scale is None or self.shift is None:
            return states
        known = groups.clamp_min(0)
        return states * (1 + pick(self.scale, known)) + pick(self.shift, known)

    def inner_table(self) -> tuple[Tensor, Tensor]:
        """Return (V, D) rows and (V,) biases that give the logits inside groups from the states themselves."""
        if self.scale is None or self.shift is None:
            return self.weight, self.bias
        groups, inside = self.token_to_group.clamp_min(0).long(), (self.token_to_group >= 0).unsqueeze(1)
        scaled = self.weight * (1 + self.scale[groups] * inside)
        return scaled, self.bias + (self.weight * self.shift[groups] * inside).sum(1)

    def class_states(self, states: Tensor) -> Tensor:
        """Return the (N, D) or (N, 2 D) inputs of the first softmax: h, and h^2 with the second-order term."""
        return states if self.variance_scale is None else torch.cat([states, states.square()], dim=1)

    def class_layer(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (K + G - H, D) or (K + G - H, 2 D) weights and the biases of the first softmax."""
        weight, bias = super().class_layer(rows)
        if self.variance_scale is None:
            return weight, bias
        members = rows[rows.shape[0] - len(self.sharing) :]
        variance = (self.mean_rows(members.square()) - self.mean_rows(members).square()).squeeze(1)
        second = torch.cat([weight.new_zeros(self.shortlist_size, self.n_embd), 0.5 * variance])
        second = second * torch.cat([bias.new_zeros(self.shortlist_size), self.variance_scale]).unsqueeze(1)
        return torch.cat([weight, second], dim=1), bias
