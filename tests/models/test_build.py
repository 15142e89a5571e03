"""A model's head gets the training counts where it is made from them, and only there."""

import numpy as np
import pytest

from grouped_lm.config import Config, GroupingConfig, ModelConfig, TokenizerConfig
from grouped_lm.heads import HEAD_CONFIGS
from grouped_lm.models.build import build_lm

BY_COUNT = {"shortlist", "adaptive"}


@pytest.mark.parametrize("grouping", ["merge_rank", "frequency"])
@pytest.mark.parametrize("head", HEAD_CONFIGS)
def test_counts_are_asked_for_where_they_are_needed(head, grouping):
    asked = []

    def count_tokens() -> np.ndarray:
        asked.append(True)
        return np.arange(257)[::-1].copy()

    schema = HEAD_CONFIGS[head]
    values = {"shortlist_size": 5} if head == "shortlist" else {}
    config = Config(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8),
        head=schema(**values),
        grouping=GroupingConfig(name=grouping),
        tokenizer=TokenizerConfig(name="bytes"),
    )
    model = build_lm(config, count_tokens)
    grouped = hasattr(schema(), "group_size")
    assert bool(asked) == (head in BY_COUNT or (grouped and grouping == "frequency"))
    if head == "shortlist":
        assert model.head.rows.outside.tolist() == [0, 1, 2, 3, 4]
