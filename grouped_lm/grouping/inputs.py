"""The inputs of the functions that build groupings.

Letters: V vocabulary, S slots per group, T tokens of the training text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GroupingInputs:
    """What a grouping is built from, besides its own config."""

    vocab_size: int
    """V, the number of tokens to group."""
    group_size: int
    """S, in [1, V]."""
    counts: Tensor | None = None
    """(V,) occurrences in the training text."""
    text: np.ndarray[Any, Any] | None = None
    """(T,) ids of the training text."""
    ids: Tensor | None = None
    """(V,) ids in the text of the tokens to group; None means 0 to V - 1."""
    equal_sizes: bool = True
    """Whether clusters must have equal sizes, as a layer of S slots that all groups share needs them."""

    @property
    def known_counts(self) -> Tensor:
        """(V,) occurrences in the training text, for groupings that need them."""
        assert self.counts is not None  # `build_grouping` has checked it
        return self.counts

    @property
    def known_ids(self) -> Tensor:
        """(V,) ids in the text of the tokens to group."""
        return torch.arange(self.vocab_size) if self.ids is None else self.ids
