"""The factorised input embedding: every token its own vector, from the parameters that the estimate counts."""

import dataclasses

import pytest
import torch

from grouped_lm.config import AdamWConfig, Config, ModelConfig, TokenizerConfig
from grouped_lm.errors import ConfigError
from grouped_lm.heads import DenseConfig, GroupedConfig
from grouped_lm.measure.devices import DEVICES
from grouped_lm.models import build_body, estimate_body_params
from grouped_lm.models.gpt2 import FactorisedEmbedding
from grouped_lm.models.lm import build_lm
from grouped_lm.optim.adamw import split_by_decay
from grouped_lm.plan.heads import plan_heads

SMALL = ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, embedding="factorised")


@pytest.mark.parametrize("vocab_size", [1, 5, 257, 50_257])
@pytest.mark.parametrize("body", ["gpt2", "gpt_neo"])
def test_parameters_are_those_of_the_estimate(body, vocab_size):
    config = dataclasses.replace(SMALL, body=body)
    built = build_body(config, vocab_size)
    assert sum(p.numel() for p in built.parameters()) == estimate_body_params(config, vocab_size)


def test_every_token_has_a_vector_of_its_own_and_the_spread_of_a_table():
    torch.manual_seed(0)
    embedding = FactorisedEmbedding(1_003, 64)
    vectors = embedding(torch.arange(1_003).view(17, 59)).view(-1, 64)
    assert torch.unique(vectors, dim=0).shape == vectors.shape
    assert 0.02 < vectors.std() < 0.04
    token = 500  # S = round(sqrt 1003) = 32: group 15, slot 20
    torch.testing.assert_close(vectors[token], embedding.scale[15] * embedding.slot[20] + embedding.shift[15])


def test_scales_and_shifts_are_not_decayed():
    model = build_lm(Config(model=SMALL, head=GroupedConfig(), tokenizer=TokenizerConfig(name="bytes")))
    kept = {id(p) for p in split_by_decay(model)[0]}
    own = dict(model.body.wte.named_parameters())
    assert {name for name, p in own.items() if id(p) in kept} == {"slot"}


def test_a_tied_head_is_refused_and_the_planner_unties():
    config = Config(model=SMALL, head=DenseConfig(), tokenizer=TokenizerConfig(name="bytes"))
    with pytest.raises(ConfigError, match=r"head\.tied=false"):
        build_lm(config)
    config = dataclasses.replace(config, head=DenseConfig(tied=False), optim=AdamWConfig(sparse_rows=True))
    plans, _ = plan_heads(config, 2**30, DEVICES["t4"])
    assert {"dense", "grouped", "film", "low_rank", "sampled"} <= {plan.head for plan in plans}
