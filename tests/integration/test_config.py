"""The schema: every preset and experiment composes, and identity knows what a run is."""

import dataclasses
from importlib.resources import files

import pytest
from grouped_lm.cli.compose.run import HydraFlags, compose_jobs, config_groups

from grouped_lm.bench.variants import load_variants
from grouped_lm.config import AdamWConfig, Config, TrainConfig, config_to_dict
from grouped_lm.errors import ConfigError
from grouped_lm.heads import (
    DEFAULT_HEAD,
    HEAD_CONFIGS,
    DenseConfig,
    GroupedConfig,
    ShortlistConfig,
    parse_head_config,
)
from grouped_lm.runs.identity import FREE_FIELDS, config_hash, config_identity
from grouped_lm.runs.load import parse_config

TEXT = ["data.train=a.txt", "data.valid=b.txt"]
GROUPS = config_groups()
SINGLE_GROUPS = ("model", "head", "grouping", "data", "tokenizer", "optim", "tracking", "experiment")


def compose_one(*overrides: str) -> Config:
    ((config, _),) = compose_jobs(list(overrides), HydraFlags())
    return config


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in SINGLE_GROUPS for c in GROUPS[g]])
def test_every_choice_composes(group, choice):
    config = compose_one(f"{group}={choice}", *(TEXT if choice == "text" else []))
    chosen = getattr(config, group, None)
    if group in ("model", "head", "grouping", "tokenizer", "optim"):
        assert chosen.name == choice


def test_every_head_has_a_yaml_with_every_field():
    assert set(GROUPS["head"]) == set(HEAD_CONFIGS)
    for name, schema in HEAD_CONFIGS.items():
        text = (files("grouped_lm.conf") / "head" / f"{name}.yaml").read_text()
        for field in dataclasses.fields(schema):
            assert f"\n{field.name}:" in text, (name, field.name)


def test_the_plain_run():
    config = compose_one()
    names = [config.model.name, config.data.name, config.tokenizer.name, config.head.name]
    assert names == ["gpt2-1m", "tinytales", "gpt2", "shortlist"]
    assert (config.grouping.name, config.head.directions, config.head.reserve) == ("brown", 0, True)
    assert compose_one("head=grouped").grouping.name == "merge_rank"
    assert compose_one("grouping=kmeans").grouping.name == "kmeans"
    assert config.tracking.mode == "offline"


def test_the_default_head_is_one():
    config = compose_one().head
    assert config == ShortlistConfig() == parse_head_config(DEFAULT_HEAD) == parse_head_config({"name": DEFAULT_HEAD})


def test_a_variant_is_the_same_with_and_without_hydra():
    assert set(load_variants()) == set(GROUPS["variant"])
    for name, variant in load_variants().items():
        config = compose_one(f"variant={name}")
        assert variant.head_config() == config.head, name
        assert variant.grouping == config.grouping.name, name
        tokenizer = variant.tokenizer or {"name": "gpt2", "vocab_size": None}
        assert tokenizer == {"name": config.tokenizer.name, "vocab_size": config.tokenizer.vocab_size}, name


def test_the_labels_of_variants_are_unique_and_the_default_is_one():
    variants = load_variants()
    assert len({variant.label for variant in variants.values()}) == len(variants)
    config = compose_one()
    assert (variants["shortlist"].head_config(), variants["shortlist"].grouping) == (config.head, config.grouping.name)


def test_what_an_experiment_sets_holds_and_the_command_line_wins():
    config = compose_one("experiment=main_job")
    assert (config.model.name, config.train.max_steps) == ("gpt2-128x3", 400)
    config = compose_one("experiment=main_job", "head=dense", "train.max_steps=3", "data=text", *TEXT)
    assert (config.head, config.train.max_steps, config.data.source) == (DenseConfig(), 3, "text")


def test_a_saved_config_comes_back_equal():
    config = compose_one("head=dense", "head.chunk_rows=256", "tracking.tags=[a,b]")
    saved = config_to_dict(config)
    assert parse_config(saved) == config
    with pytest.raises(ConfigError, match="unknown key surprise"):
        parse_config(saved | {"surprise": 1})


def test_the_hash_ignores_what_changes_nothing_and_sees_what_does():
    base = Config(head=GroupedConfig())
    assert config_hash(base) == config_hash(Config(head=GroupedConfig(), name="other"))
    assert config_hash(base) == config_hash(Config(head=GroupedConfig(), train=TrainConfig(log_every_steps=3)))
    for other in (
        Config(head=DenseConfig()),
        Config(head=GroupedConfig(group_size=7)),
        Config(head=GroupedConfig(), seed=1),
        Config(head=GroupedConfig(), optim=AdamWConfig(lr=2e-3)),
        Config(head=GroupedConfig(), train=TrainConfig(max_steps=301)),
    ):
        assert config_hash(base) != config_hash(other)


def test_free_fields_exist():
    flat = set(config_identity(config_to_dict(Config(head=GroupedConfig()))))
    values = config_to_dict(Config(head=GroupedConfig()))
    for path in FREE_FIELDS:
        node = values
        for part in path.split("."):
            assert part in node, path
            node = node[part]
        assert path not in flat
