"""Compose and check the configs of a command, then let Hydra run its jobs.

Typer declares Hydra's flags. `launch` rebuilds the command line from them and calls the real `hydra.main`, so that
overrides, multirun, config groups, launchers and sweepers work as in any Hydra program.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from grouped_lm.bench.settings import SUITES, BenchConfig
from grouped_lm.config import Config, ModelConfig, check_choice
from grouped_lm.errors import ConfigError, GvcError
from grouped_lm.system.phases import phase, say, track

from . import slurm_launcher
from .compose import (
    BENCH_CONFIG,
    CONF,
    WANDB_VARIABLES,
    HydraFlags,
    compose_jobs,
    composing,
    config_groups,
    env_value,
    parse,
    to_config,
)
from .explain import RAISED, RAISED_COMPOSING, explained
from .shorthand import adopt_source

ConfigStore.instance().store(name="gvc_bench_schema", node=BenchConfig)
DEFAULTS = ["gvc_bench_schema", "_self_", {"data": "tinytales"}, {"tokenizer": "gpt2"}, {"bench": "quick"}]
ConfigStore.instance().store(name=BENCH_CONFIG, node={"defaults": DEFAULTS})


def compose_one(overrides: list[str], flags: HydraFlags) -> Config:
    """Compose and check the config of a command that takes one."""
    with explained(overrides, flags, RAISED_COMPOSING), phase("reading the config"):
        overrides = adopt_source(overrides, config_dir=flags.config_dir)
        (config, _), *others = compose_jobs(overrides, flags)
    if others:
        count = len(others) + 1
        raise ConfigError(f"this command takes one config, and a sweep describes {count}: leave sweep=... out")
    return config


def compose_bench(
    suite: str, grid: str, overrides: list[str], config_dir: str | None
) -> tuple[BenchConfig, dict[str, ModelConfig]]:
    """Return the settings of `gvc bench`, and the bodies of its presets, checked before anything is measured."""
    from grouped_lm.data import parse_data_config  # imports torch, as the next one does
    from grouped_lm.system.runtime import resolve_device

    check_choice("SUITE", suite, SUITES)
    flags = HydraFlags(config_name=BENCH_CONFIG, config_dir=config_dir)
    words = [f"bench={grid}", *overrides]
    with explained(words, flags, RAISED_COMPOSING), composing(flags) as compose_with:
        plain: Any = OmegaConf.to_container(compose_with(words), resolve=True)
        data = parse_data_config(plain.pop("data"))
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BenchConfig), plain))
    assert isinstance(settings, BenchConfig)
    settings.data = data
    settings.check_suite(suite)
    resolve_device(settings.device, "device")
    names = settings.model_names(suite)
    return settings, {n: compose_one([f"model={n}"], HydraFlags(config_dir=config_dir)).model for n in names}


def run(overrides: list[str], flags: HydraFlags) -> None:
    """Compose and check, then let Hydra train each job. The first process prints its run folder."""
    with phase("starting"):
        from grouped_lm.jobs.launch import check_processes, preflight, run_training
        from grouped_lm.runs.folder import COMPLETE, RunFolder

    rank, size = check_processes()
    with explained(overrides, flags):
        overrides = adopt_source(overrides, config_dir=flags.config_dir)
    if not flags.only_prints:
        with explained(overrides, flags, RAISED_COMPOSING), phase("reading the config"):
            jobs = compose_jobs(overrides, flags)
        check_processes(len(jobs))
        for config, run_dir in track(jobs, "checking the jobs", len(jobs)) if len(jobs) > 1 else jobs:
            preflight(config, run_dir, here=not flags.multirun and len(jobs) == 1, processes=size)
    if rank:  # of several that torchrun has started, the first one's folder is everybody's
        overrides = [*overrides, "hydra.run.dir=.", "hydra.output_subdir=null"]

    def train_job(config: Config, run_dir: Path) -> Any:
        was_complete = (RunFolder(run_dir).read_result() or {}).get("state") == COMPLETE
        result = run_training(config, run_dir, size)
        if rank == 0:
            if was_complete:
                say(f"gvc: {run_dir} was complete already: nothing is trained, and its figures stay")
            print(run_dir, flush=True)
        return result["val/loss"]

    raised = RAISED_COMPOSING if flags.only_prints else RAISED
    with explained(overrides, flags, raised):
        launch(overrides, flags, train_job)


def launch(overrides: list[str], flags: HydraFlags, task: Callable[[Config, Path], Any]) -> None:
    """Call `hydra.main` with the flags and overrides as its command line."""
    raised: list[GvcError] = []

    def job(composed: DictConfig) -> Any:
        try:
            return task(to_config(composed), Path(HydraConfig.get().runtime.output_dir))
        except GvcError as error:
            if HydraConfig.get().mode is not RunMode.RUN:
                raise
            raised.append(error)  # past Hydra, which would write a line of its own before ours
            return None

    if any(word.startswith("hydra/launcher=") and "slurm" in word for word in overrides):
        slurm_launcher.install()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    previous, sys.argv = sys.argv, ["gvc", *flags.argv(), *overrides]
    try:
        with contextlib.redirect_stderr(io.StringIO()) if flags.package else contextlib.nullcontext():
            hydra.main(config_path=f"pkg://{CONF}", config_name=flags.config_name, version_base="1.3")(job)()
    except SystemExit as stop:
        if flags.package and stop.code == 1:  # Hydra's answer, after a line of its own
            raise ConfigError(f"--package {flags.package} is no part of the config: --cfg alone shows all") from None
        raise
    finally:
        sys.argv = previous
    if raised:
        raise raised[0]


def override_saved(config: Config, overrides: list[str]) -> Config:
    """Return a run's saved config with overrides on top: `data=text` replaces a group, `train.device=cpu` a value."""
    flags = HydraFlags()
    with explained(overrides, flags, RAISED_COMPOSING, saved=asdict(config)), composing(flags) as compose_with:
        if any((o.key_or_group, o.value()) == ("train.micro_batch_size", "auto") for o in parse(overrides)):
            raise ConfigError(
                "train.micro_batch_size=auto is for new runs, and this one has its size: leave it out, or give "
                "train.eval_batch_size=N for an evaluation"
            )
        if hydras := [o.input_line for o in parse(overrides) if str(o.key_or_group).startswith("hydra")]:
            raise ConfigError(f"{hydras[0]} is for new runs, and this one has its folder: leave it out")
        for override in parse(overrides):
            if override.key_or_group in ("variant", "experiment", "sweep", "bench"):
                raise ConfigError(f"{override.input_line} is for new runs, and this one has its config: leave it out")
        composed = OmegaConf.create(asdict(config))
        fresh = compose_with([])
        composed.data.cache_dir = fresh.data.cache_dir  # a stranger's run may not say where we write
        if composed.tracking.mode != "disabled" and composed.tracking.backend == "wandb":
            composed.tracking.update({k: fresh.tracking[k] for k, name in WANDB_VARIABLES.items() if env_value(name)})
        chosen = [o for o in parse(overrides) if o.key_or_group in config_groups()]
        for override in chosen:
            fresh = compose_with([o for o in overrides if o.split("=")[0].split(".")[0] == override.key_or_group])
            composed[override.key_or_group] = fresh[override.key_or_group]
        OmegaConf.set_struct(composed, True)
        for override in parse(overrides):
            if override not in chosen:
                key, value = override.key_or_group, override.value()
                if OmegaConf.is_dict(OmegaConf.select(composed, key)) and not isinstance(value, dict):
                    raise ConfigError(f"{override.input_line}: {key} is a group of keys: write {key}.NAME=VALUE")
                OmegaConf.update(composed, key, value)
        return to_config(composed)
