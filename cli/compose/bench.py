"""Compose the settings of `gvc bench`, and the bodies of its presets."""

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from grouped_lm.bench.settings import SUITES, BenchConfig
from grouped_lm.config import ModelConfig, check_choice
from grouped_lm.data import parse_data_config

from .compose import BENCH_CONFIG, HydraFlags, composing, to_config
from .explain import explained

ConfigStore.instance().store(name="gvc_bench_schema", node=BenchConfig)
DEFAULTS = ["gvc_bench_schema", "_self_", {"data": "tinytales"}, {"tokenizer": "gpt2"}, {"bench": "quick"}]
ConfigStore.instance().store(name=BENCH_CONFIG, node={"defaults": DEFAULTS})


def compose_bench(
    suite: str, grid: str, overrides: list[str], config_dir: str | None
) -> tuple[BenchConfig, dict[str, ModelConfig]]:
    """Compose and check everything before anything is measured.

    Raises:
        ConfigError: An unknown suite, grid, key or preset, a value out of range, or an absent device.
    """
    check_choice("SUITE", suite, SUITES)
    flags = HydraFlags(config_name=BENCH_CONFIG, config_dir=config_dir)
    words = [f"bench={grid}", *overrides]
    with explained(words, flags), composing(flags) as compose_with:
        plain: Any = OmegaConf.to_container(compose_with(words), resolve=True)
        data = parse_data_config(plain.pop("data"))
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BenchConfig), plain))
    assert isinstance(settings, BenchConfig)
    settings.data = data
    settings.check_suite(suite)
    if settings.device == "cuda":
        from grouped_lm.system.runtime import resolve_device  # imports torch

        resolve_device("cuda", "device")
    return settings, {name: compose_model(name, config_dir) for name in settings.model_names(suite)}


def compose_model(name: str, config_dir: str | None) -> ModelConfig:
    """Return the body of `model=NAME`."""
    flags, words = HydraFlags(config_dir=config_dir), [f"model={name}"]
    with explained(words, flags), composing(flags) as compose_with:
        return to_config(compose_with(words)).model
