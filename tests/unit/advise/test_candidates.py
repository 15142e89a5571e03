"""The heads that advice is about."""

from dataclasses import replace

import pytest

from grouped_lm.advise.heads import REFERENCE, choose_variants, fitting_variants, variant_config
from grouped_lm.config import Config, ModelConfig, TokenizerConfig, TrainConfig
from grouped_lm.errors import ConfigError


@pytest.fixture
def config() -> Config:
    """A tiny body on bytes."""
    model = ModelConfig(n_layer=1, n_head=1, n_embd=16, block_size=16)
    return Config(model=model, tokenizer=TokenizerConfig(name="bytes"))


def test_the_usual_heads_have_the_reference_and_the_default(config):
    names = [variant.name for variant in choose_variants(config)]
    assert {REFERENCE, "shortlist", "shortlist-own-2048"} <= set(names)
    fitting = {variant.name for variant in fitting_variants(config)}
    assert fitting >= set(names)
    assert not fitting & {"bpe-4096", "kneser-ney"}  # another tokenizer, and no head of a body


def test_named_heads_are_compared_with_the_reference(config):
    assert [variant.name for variant in choose_variants(config, ["dense-bias"])] == ["dense-bias", REFERENCE]
    with pytest.raises(ConfigError, match=r"--heads must be one of .*trim-bias.*got 'dens'"):
        choose_variants(config, ["dens"])


def test_a_factorised_embedding_is_not_shared_and_one_process_has_whole_tables(config):
    usual = {variant.name for variant in choose_variants(config)}
    factorised = replace(config, model=replace(config.model, embedding="factorised"))
    chosen = choose_variants(factorised)
    assert {variant.name for variant in chosen} == usual
    own = {variant.name: variant_config(factorised, variant).head for variant in chosen}
    assert own[REFERENCE].tied is False
    split = replace(config, train=TrainConfig(vocab_parallel=True))
    assert {variant.name for variant in choose_variants(split)} == usual
    assert not variant_config(split, choose_variants(split)[0]).train.vocab_parallel
