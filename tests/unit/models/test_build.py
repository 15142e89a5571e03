"""A model's head gets the training counts where it is made from them, and only there; a checkpoint brings its own."""

import numpy as np
import pytest
import torch

from grouped_lm.config import AdamWConfig, Config, GroupingConfig, ModelConfig, TokenizerConfig
from grouped_lm.heads import HEADS
from grouped_lm.models.lm import build_lm
from grouped_lm.optim import build_optimizer
from grouped_lm.runs.train_state import head_buffers, pack, unpack, unpack_model

BY_COUNT = {name for name, (_, head) in HEADS.items() if head.needs_counts}


def config_of(head: str, grouping: str) -> Config:
    return Config(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8),
        head=HEADS[head].schema(**({"shortlist_size": 5} if head == "shortlist" else {})),
        grouping=GroupingConfig(name=grouping),
        tokenizer=TokenizerConfig(name="bytes"),
    )


@pytest.mark.parametrize("grouping", ["merge_rank", "frequency"])
@pytest.mark.parametrize("head", HEADS)
def test_counts_are_asked_for_where_they_are_needed(head, grouping):
    asked = []

    def count_tokens() -> np.ndarray:
        asked.append(True)
        return np.arange(257)[::-1].copy()

    model = build_lm(config_of(head, grouping), count_tokens)
    grouped = hasattr(HEADS[head].schema(), "group_size")
    assert bool(asked) == (head in BY_COUNT or (grouped and grouping == "frequency"))
    if head == "shortlist":
        assert model.head.outside.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("head", HEADS)
def test_a_checkpoint_brings_what_the_counts_decided(head):
    config, ids = config_of(head, "frequency"), torch.arange(16).view(2, 8) * 16
    counts = np.random.default_rng(0).integers(0, 100, 257)
    trained = build_lm(config, lambda: counts)
    optimizer = build_optimizer(AdamWConfig(), trained)
    for _ in range(3):
        trained(ids, ids + 1).nll.backward()
        optimizer.step()
        optimizer.zero_grad()
    files = pack(trained, optimizer, {})

    for_use = build_lm(config, lambda: np.zeros(257, dtype=np.int64), saved=head_buffers(files))
    unpack_model(files, for_use)
    going_on = build_lm(config, lambda: counts)
    unpack(files, going_on, build_optimizer(AdamWConfig(), going_on))
    expected = trained.eval()(ids, ids + 1, reduction="none").nll
    for model in (for_use.eval(), going_on.eval()):
        assert torch.equal(model(ids, ids + 1, reduction="none").nll, expected)
        log_prob = model.head.log_prob(model.hidden(ids)).gather(-1, (ids + 1).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(-log_prob, expected)
