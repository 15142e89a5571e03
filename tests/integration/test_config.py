"""The schema: every preset and experiment composes, and identity knows what a run is."""

import dataclasses
from importlib.resources import files

import pytest
from grouped_lm.cli.compose.compose import HydraFlags, compose_jobs, config_groups

from grouped_lm.bench.variants import load_variants
from grouped_lm.config import AdamWConfig, Config, TrainConfig, check_fields, config_to_dict, free, parse_named, setting
from grouped_lm.errors import ConfigError
from grouped_lm.heads import DEFAULT_HEAD, HEADS, DenseConfig, GroupedConfig, ShortlistConfig, parse_head_config
from grouped_lm.prior.config import KneserNeyConfig
from grouped_lm.runs.identity import config_hash, config_identity, is_identity, iter_settings
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
    schemas = {name: schema for name, (schema, _) in HEADS.items()} | {"kneser_ney": KneserNeyConfig}
    assert set(GROUPS["head"]) == set(schemas)
    for name, schema in schemas.items():
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


def test_micro_batch_size_auto_may_stand_in_a_file(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ntrain:\n  micro_batch_size: auto\n  grad_accum_steps: 4\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    ((config, _),) = compose_jobs(["experiment=mine"], HydraFlags(config_dir=str(tmp_path)))
    assert config == compose_one("train.auto_micro_batch=true", "train.grad_accum_steps=4")
    assert config.train.micro_batch_size == 8


def test_a_saved_config_comes_back_equal():
    config = compose_one("head=dense", "head.chunk_rows=256", "tracking.tags=[a,b]")
    saved = config_to_dict(config)
    assert saved["schema_version"] == 2
    assert parse_config(saved) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "unknown key surprise"),
        ({"train": {"max_stpes": 3}}, r"unknown key train.max_stpes; did you mean train.max_steps\?"),
        ({"train": {"max_steps": "3"}}, "train.max_steps must be a whole number, got '3'"),
        ({"train": {"max_steps": True}}, "train.max_steps must be a whole number, got True"),
        ({"optim": {"name": "adamw", "lr": "fast"}}, "optim.lr must be a number, got 'fast'"),
        ({"tracking": {"tags": "a"}}, r"tracking.tags must be a list, got 'a'"),
        ({"model": [3]}, r"model must hold settings, got \[3\]"),
        ({"seed": "0"}, "seed must be a whole number, got '0'"),
    ],
)
def test_a_saved_config_with_a_wrong_value_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(config_to_dict(compose_one()) | changes)


@dataclasses.dataclass(kw_only=True, slots=True)
class Wave:
    name: str = "wave"
    height: float = 1.0
    label: str | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "wafe"}, "kind must be one of wave, flat, got 'wafe'"),
        ({}, "kind must be one of wave, flat, got None"),
        (None, "kind must be one of wave, flat, got None"),
        ({"name": "wave", "hight": 1}, r"unknown key kind.hight for kind=wave; did you mean kind.height\?"),
        ({"name": "wave", "speed": 1}, r"unknown key kind.speed for kind=wave \(kind has name, height, label\)"),
        ({"name": "wave", "height": "2"}, "kind.height must be a number, got '2'"),
    ],
)
def test_named_settings_that_are_wrong(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_named({"wave": Wave, "flat": Wave}, values, "kind")


@dataclasses.dataclass(kw_only=True, slots=True)
class Tide:
    rate: float = setting(0.5, 0, 1, open_low=True)
    count: int | None = setting(None, 1)
    kind: str = setting("ebb", choices=("ebb", "flood"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.0}, r"tide.rate must be in \(0, 1\], got 0.0"),
        ({"rate": float("nan")}, r"tide.rate must be in \(0, 1\], got nan"),
        ({"count": 0}, r"tide.count must be in \[1, inf\), got 0"),
        ({"kind": "slack"}, "tide.kind must be one of ebb, flood, got 'slack'"),
    ],
)
def test_a_setting_outside_its_range_or_choices(values, message):
    check_fields(Tide(), "tide")
    check_fields(Tide(rate=1.0, count=1, kind="flood"), "tide")
    with pytest.raises(ConfigError, match=message):
        check_fields(Tide(**values), "tide")


def test_named_settings():
    wave = parse_named({"wave": Wave}, {"name": "wave", "height": 2, "label": None}, "kind")
    assert (wave, type(wave.height)) == (Wave(height=2.0), float)


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


FREE = """
name tracking eval judge data.name data.cache_dir model.attention model.activation_checkpointing train.log_every_steps
train.eval_every_steps train.eval_batch_size train.checkpoint_every_steps train.checkpoint_every_minutes
train.keep_checkpoints train.mirror train.on_nonfinite train.max_nonfinite train.hang_minutes train.resume train.device
train.cuda_graphs train.devices train.nodes train.strategy train.vocab_parallel train.max_restarts train.kernels
"""


def test_the_fields_that_may_change_in_a_continued_run():
    """A change of this list changes which runs continue and which are refused: make it on purpose."""
    config = compose_one()
    free = {path for path, spec, _ in iter_settings(config) if not is_identity(spec)}
    assert free == set(FREE.split())
    assert free.isdisjoint(config_identity(config))
    assert {"optim.lr", "head.group_size", "data.seed", "train.max_steps"} < config_identity(config).keys()


def test_a_new_field_belongs_to_the_identity_unless_it_is_declared_free():
    @dataclasses.dataclass(kw_only=True, slots=True)
    class Part:
        lr: float = 1e-3
        threads: int = free(1)
        folder: str = free("x", cost=True)

    settings = list(iter_settings(Part(), "part."))
    assert [(path, is_identity(spec), value) for path, spec, value in settings] == [
        ("part.lr", True, 1e-3),
        ("part.threads", False, 1),
        ("part.folder", False, "x"),
    ]
    assert [spec.metadata.get("cost", False) for _, spec, _ in settings] == [False, False, True]
