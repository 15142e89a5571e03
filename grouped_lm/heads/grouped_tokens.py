"""The part of a head that knows which token is in which group.

Letters: N tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.grouping import describe_groups

GROUP, SLOT = "token_to_group", "token_to_slot"
"""Names of the two buffers, also in checkpoints."""


class GroupedTokens(nn.Module):
    """A module with a group and a slot for each of V tokens, saved in its checkpoints."""

    token_to_group: Tensor
    """(V,) int32; -1 for tokens outside the groups. As int64 the tables would be as large as 1,024 states of D 128."""
    token_to_slot: Tensor
    """(V,) int32: the place in the group, or among the tokens outside the groups."""

    def assign_groups(self, token_to_group: Tensor, token_to_slot: Tensor) -> None:
        """Register the (V,) groups and slots as buffers."""
        self.register_buffer(GROUP, token_to_group.to(torch.int32, copy=True))
        self.register_buffer(SLOT, token_to_slot.to(torch.int32, copy=True))

    def groups_and_slots(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N,) int64 groups and slots of (N,) ids."""
        return self.token_to_group[tokens].long(), self.token_to_slot[tokens].long()

    def describe_groups(self, special: dict[str, int]) -> dict[str, Any]:
        """Return a description of the groups for JSON; `special` has ids by name, such as end-of-text."""
        return describe_groups(self.token_to_group, self.token_to_slot, special)

    @staticmethod
    def saved_groups(saved: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return the (V,) int64 groups and slots in the saved buffers of a head; None where there are none."""
        return (saved[GROUP].long(), saved[SLOT].long()) if GROUP in saved else None
