"""The input side: a table with a row per token, or one made of slots and groups, as the paper makes its output.

Letters: D width, V vocabulary, G groups, S slots per group.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import ModelConfig
from grouped_lm.grouping import default_group_size

INIT_STD = 0.02
"""Standard deviation of freshly drawn embeddings, as GPT-2's."""


class FactorisedEmbedding(nn.Module):
    """scale[g] * slot[s] + shift[g] for the token of id g S + s: (2 G + S) D numbers instead of V D.

    S is round(sqrt V). The input-side twin of `head=film` (arXiv 2411.06371 compresses the output alone). Groups are by
    id, whatever the head's grouping. `scale` starts at random signs, so that tokens in one slot of different groups
    start nearly unrelated, and the product has the spread of a table's rows.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("scale", "shift")

    def __init__(self, vocab_size: int, n_embd: int) -> None:
        super().__init__()
        self.group_size = default_group_size(vocab_size)
        n_group = -(-vocab_size // self.group_size)
        self.slot = nn.Parameter(INIT_STD * torch.randn(self.group_size, n_embd))
        self.scale = nn.Parameter(torch.randn(n_group, n_embd))
        self.shift = nn.Parameter(INIT_STD * torch.randn(n_group, n_embd))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map (...) int64 ids in [0, V) to (..., D)."""
        groups, slots = input_ids // self.group_size, input_ids % self.group_size
        return F.embedding(groups, self.scale) * F.embedding(slots, self.slot) + F.embedding(groups, self.shift)


def build_embedding(config: ModelConfig, vocab_size: int) -> nn.Embedding | FactorisedEmbedding:
    """Build the input embedding that `config.embedding` names."""
    if config.embedding == "factorised":
        return FactorisedEmbedding(vocab_size, config.n_embd)
    return nn.Embedding(vocab_size, config.n_embd)


def estimate_embedding_params(config: ModelConfig, vocab_size: int) -> int:
    """Return V D, or (2 G + S) D."""
    if config.embedding == "table":
        return vocab_size * config.n_embd
    size = default_group_size(vocab_size)
    return (2 * -(-vocab_size // size) + size) * config.n_embd
