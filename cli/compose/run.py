"""The one room that knows Hydra: flags and overrides in, a strict `Config` or one clear line out.

Typer declares Hydra's flags, `run` rebuilds the command line from them, and the real `hydra.main` does the rest:
overrides, multirun, config groups, launchers and sweepers stay its own.
"""

import contextlib
import difflib
import io
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grouped_lm.bench.variants import load_variant, load_variants
from grouped_lm.config import Config
from grouped_lm.errors import ConfigError, GvcError

from .files import check_config_files
from .launchers import missing_plugin

CONF = "grouped_lm.conf"
BENCH_CONFIG = "gvc_bench"
"""The primary config of `gvc bench`."""
RENAMED_KEYS = {"entrant": "variant"}
RENAMED_SWEEPS = {f"ladder-{name}": f"leaderboard-{name}" for name in ("screen", "rates", "final")}
"""Names of the release before, for one line with the new name."""
COMMON_NAMES = {
    "learning_rate": "optim.lr",
    "lr": "optim.lr",
    "batch_size": "train.micro_batch_size",
    "steps": "train.max_steps",
    "max_iters": "train.max_steps",
    "gradient_accumulation_steps": "train.grad_accum_steps",
    "hidden_size": "model.n_embd",
    "num_layers": "model.n_layer",
    "num_heads": "model.n_head",
    "context_length": "model.block_size",
    "output_dir": "hydra.run.dir",
    "wandb_project": "tracking.project",
}
"""What other trainers call our keys: a misspelt one is looked up here too."""
QUOTES = "'\""
RAISED = (HydraException, OmegaConfBaseException, yaml.YAMLError)
RAISED_COMPOSING = (ValueError, TypeError, AssertionError, RecursionError)
"""What else Hydra raises over odd overrides and files; only while it composes, when none of our own code runs."""


def register() -> None:
    """Tell Hydra the schema, and a resolver that keeps two runs of the same second apart."""
    ConfigStore.instance().store(name="gvc_schema", node=ComposedConfig)
    OmegaConf.register_new_resolver("gvc_slug", lambda value: re.sub(r"[^\w.+-]", "_", str(value)), replace=True)
    OmegaConf.register_new_resolver("gvc_unique", lambda: secrets.token_hex(4), use_cache=True, replace=True)


@dataclass(kw_only=True, slots=True)
class VariantNote:
    """What a file of conf/variant says about itself."""

    label: str | None = None
    description: str | None = None


@dataclass(kw_only=True, slots=True)
class ComposedConfig(Config):
    """What Hydra composes: the config of a run, and the variant's note, which runs do not keep."""

    variant: VariantNote = field(default_factory=VariantNote)
    optim: Any = None  # the group optim fills it, as it fills head


@dataclass(kw_only=True, slots=True)
class HydraFlags:
    """Hydra's own flags, as Typer collected them."""

    multirun: bool = False
    cfg: str | None = None
    package: str | None = None
    resolve: bool = False
    info: str | None = None
    config_dir: str | None = None
    config_name: str = "config"
    may_sweep: bool = False
    """Whether the command has -m."""

    @property
    def only_prints(self) -> bool:
        """Whether Hydra is to show something instead of running the task."""
        return self.cfg is not None or self.info is not None

    def argv(self) -> list[str]:
        """Return the flags as Hydra's command line has them."""
        words = ["--multirun"] if self.multirun else []
        words += ["--resolve"] if self.resolve else []
        for name in ("cfg", "package", "info"):
            if getattr(self, name) is not None:
                words += [f"--{name}", getattr(self, name)]
        return words + (["--config-dir", str(Path(self.config_dir).absolute())] if self.config_dir else [])


register()  # at import, so that a launcher's worker that unpickles a task knows them too


@contextmanager
def composing(flags: HydraFlags) -> Iterator[Callable[..., DictConfig]]:
    """Give a function that composes overrides outside of a run, from the same places as the run itself.

    Raises:
        ConfigError: --config-dir is no folder, or one with files that nobody needs to be that large.
    """
    if flags.config_dir:
        check_config_files(Path(flags.config_dir))

    def compose_with(overrides: list[str], **kwargs: Any) -> DictConfig:
        return compose(config_name=flags.config_name, overrides=overrides, **kwargs)

    with initialize_config_module(config_module=CONF, version_base="1.3", job_name="gvc"):
        if flags.config_dir:
            loader: Any = GlobalHydra.instance().config_loader()
            loader.get_search_path().prepend("command-line", f"file://{Path(flags.config_dir).absolute()}", "schema")
            loader.repository.initialize_sources(loader.get_search_path())
        yield compose_with


def to_config(composed: DictConfig) -> Config:
    """Return the typed config; what Hydra lets pass (`+typo=1`, NaN, a negative count) ends here.

    Raises:
        ConfigError, OmegaConfBaseException: a key, type or value outside the schema.
    """
    from grouped_lm.runs.load import PARSERS  # imports torch, which --cfg and --info need not wait for

    plain: Any = OmegaConf.to_container(composed, resolve=True)  # a typed node would carry added keys along
    label = (plain.pop("variant", None) or {}).get("label")
    variant = next((v for v in load_variants().values() if v.label == label), None) if label else None
    if variant and variant.head["name"] != plain["head"]["name"]:
        raise ConfigError(two_heads(variant.name, plain["head"]["name"]))
    parts = {part: parse_part(plain.pop(part, None)) for part, parse_part in PARSERS.items()}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    assert isinstance(config, Config)
    for part, value in parts.items():
        setattr(config, part, value)
    return config


def two_heads(variant: str, head: str) -> str:
    """Return the line for a variant beside another choice of the head."""
    return f"variant={variant} and head={head} do not go together, since a variant chooses the head: leave one out"


def parse(overrides: list[str]) -> list[Override]:
    """Return Hydra's reading of the overrides."""
    return OverridesParser.create().parse_overrides(overrides)


def quoted(text: str) -> str:
    """Return `text` as a value that Hydra reads as it is."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def expand_jobs(overrides: list[str], params: dict[str, Any]) -> list[list[str]]:
    """Return the overrides of every job of a multirun; ranges that only a sweeper can fill are left out."""
    parsed = parse([f"{key}={value}" for key, value in params.items()] + overrides)
    discrete = [o for o in parsed if not o.is_sweep_override() or o.is_discrete_sweep()]
    return [job for batch in BasicSweeper.split_arguments(discrete, None) for job in batch]


def check_folders(overrides: list[Override]) -> None:
    """Refuse an empty name of a folder, such as an unset variable's, which would mean the current one.

    Raises:
        ConfigError: there is one.
    """
    for override in overrides:
        if override.key_or_group in ("hydra.run.dir", "hydra.sweep.dir") and not str(override.value() or "").strip():
            raise ConfigError(f"{override.key_or_group} is empty: name a folder, or leave it out")


def compose_jobs(overrides: list[str], flags: HydraFlags) -> list[tuple[Config, Path | None]]:
    """Compose and validate every job before any folder is made.

    Returns:
        Each job's config, and its run folder where the user named one.
    """
    check_folders(parse(overrides))
    with composing(flags) as compose_with:
        sweeps = [o.input_line or "" for o in parse(overrides) if o.is_sweep_override()] if flags.multirun else []
        plain = [o for o in overrides if o not in sweeps]
        base = compose_with(plain, return_hydra_config=True)
        is_multirun = flags.multirun or str(base.hydra.mode).endswith("MULTIRUN")
        if not is_multirun:
            named = [o for o in parse(overrides) if o.key_or_group == "hydra.run.dir"]
            return [(to_config(compose_with(overrides)), Path(str(named[-1].value())) if named else None)]
        jobs = expand_jobs(overrides, dict(base.hydra.sweeper.get("params") or {}))
        return [(to_config(compose_with(job)), None) for job in jobs]


def compose_one(overrides: list[str], flags: HydraFlags) -> Config:
    """Compose and validate the one config of a command that runs no jobs.

    Raises:
        ConfigError: an override is wrong, or there would be several jobs.
    """
    with explained(overrides, flags):
        (config, _), *others = compose_jobs(overrides, flags)
    if others:
        raise ConfigError(
            f"this command takes one config, and a sweep describes {len(others) + 1}: leave sweep=... out"
        )
    return config


def run(overrides: list[str], flags: HydraFlags, task: Callable[[Config, Path], Any]) -> None:
    """Compose, validate, then let Hydra run `task(config, run_folder)`, once or once per job.

    Raises:
        GvcError: with the one line that the user is shown.
    """
    from grouped_lm.distributed.process_group import rank_and_size
    from grouped_lm.jobs.preflight import preflight

    rank, size = rank_and_size()
    if flags.only_prints and flags.config_dir:
        check_config_files(Path(flags.config_dir))
    if not flags.only_prints:
        with explained(overrides, flags, (*RAISED, *RAISED_COMPOSING)):
            jobs = compose_jobs(overrides, flags)
        if size > 1 and len(jobs) > 1:
            raise ConfigError(
                "torchrun starts the processes of one job: for several leave it out, train.devices does it"
            )
        for config, run_dir in jobs:
            preflight(config, run_dir, here=not flags.multirun and len(jobs) == 1)
    if rank:  # of several that torchrun has started, the first one's folder is everybody's
        overrides = [*overrides, "hydra.run.dir=.", "hydra.output_subdir=null"]
    with explained(overrides, flags):
        launch(overrides, flags, task)


def launch(overrides: list[str], flags: HydraFlags, task: Callable[[Config, Path], Any]) -> None:
    """Call the real `hydra.main` with the command line that flags and overrides stand for."""
    raised: list[GvcError] = []

    def job(composed: DictConfig) -> Any:
        try:
            return task(to_config(composed), Path(HydraConfig.get().runtime.output_dir))
        except GvcError as error:
            if HydraConfig.get().mode is not RunMode.RUN:
                raise
            raised.append(error)  # past Hydra, which would write a line of its own before ours
            return None

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
    with explained(overrides, flags), composing(flags) as compose_with:
        composed = OmegaConf.create(asdict(config))
        composed.data.cache_dir = compose_with([]).data.cache_dir  # a stranger's run may not say where we write
        chosen = [o for o in parse(overrides) if o.key_or_group in config_groups()]
        for override in chosen:
            fresh = compose_with([o for o in overrides if o.split("=")[0].split(".")[0] == override.key_or_group])
            composed[override.key_or_group] = fresh[override.key_or_group]
        OmegaConf.set_struct(composed, True)
        for override in parse(overrides):
            if override not in chosen:
                OmegaConf.update(composed, override.key_or_group, override.value())
        return to_config(composed)


@contextmanager
def explained(overrides: list[str], flags: HydraFlags, raised: tuple[type[Exception], ...] = RAISED) -> Iterator[None]:
    """Turn whatever Hydra and OmegaConf raise into a `ConfigError` of one line."""
    try:
        yield
    except GvcError:
        raise
    except raised as error:
        if os.environ.get("GVC_DEBUG"):
            raise
        raise ConfigError(explain(error, overrides, flags)) from error


def explain(error: Exception, overrides: list[str], flags: HydraFlags) -> str:
    """Return one line for an error of Hydra's: which override, what is allowed, the nearest name."""
    wrong = next((word for word in overrides if not is_override(word)), None)
    if wrong is not None:
        key, _, value = wrong.partition("=")
        quotes = f'; a value with spaces, =, quotes or brackets goes in quotes: "{key}={quoted(value.strip(QUOTES))}"'
        return f"{wrong} is no override: write KEY=VALUE{quotes if key and value else ''}"
    parsed = parse(overrides)
    groups = config_groups(flags.config_dir)
    for override in parsed:
        group, choice = override.key_or_group, override.value()
        if group in RENAMED_KEYS:
            return f"{group}= is now {RENAMED_KEYS[group]}="
        if group == "sweep" and isinstance(choice, str) and choice in RENAMED_SWEEPS:
            return f"sweep {choice} is now {RENAMED_SWEEPS[choice]}"
        if group in groups and isinstance(choice, str) and choice not in groups[group]:
            given = f"--grid {choice}" if group == "bench" else f"{group}={choice}"
            return f"{given} is not known{nearest(choice, groups[group])}; there are {', '.join(groups[group])}"
    choices = {o.key_or_group: str(o.value()) for o in parsed}
    if {"head", "variant"} <= set(choices) and load_variant(choices["variant"]).head["name"] != choices["head"]:
        return two_heads(choices["variant"], choices["head"])
    try:
        keys = known_keys([o.input_line or "" for o in parsed if o.key_or_group in groups], flags)
    except (*RAISED, *RAISED_COMPOSING):
        return " ".join(str(error).split())[:300]  # the files themselves are wrong, no override
    for override in parsed:
        key = override.key_or_group
        if key not in groups and key not in keys and not key.startswith("hydra"):
            where = (
                "grouped_lm/bench/settings.py has"
                if flags.config_name == BENCH_CONFIG
                else "`gvc train --cfg job` lists"
            )
            return f"unknown key {key}{nearest_key(key, keys)}; {where} them all"
        if override.is_sweep_override() and not flags.multirun:
            to_do = "add -m to run a job for each" if flags.may_sweep else "this command takes one"
            return f"{override.input_line} gives several values: {to_do}"
    missing = missing_plugin(str(error))
    if missing:
        return missing
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    full_key = getattr(cause, "full_key", None)
    if "is not a ListConfig" in str(cause):
        value = next((o.input_line or "" for o in parsed if o.key_or_group == full_key), "").partition("=")[2]
        return f"{full_key} takes a list: write {full_key}=[{value}]"
    return f"{full_key}: {first_line(cause)}" if full_key else first_line(cause)


def is_override(word: str) -> bool:
    """Return whether Hydra can read `word`, and it names a key."""
    try:
        return bool(parse([word])[0].key_or_group)
    except HydraException:
        return False


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(word: str, allowed: list[str]) -> str:
    """Return "; did you mean X?" for the nearest of `allowed`, by its whole name, its last part, or a common name."""
    whole = difflib.get_close_matches(word, allowed, n=1, cutoff=0.7)
    if whole:
        return f"; did you mean {whole[0]}?"
    names = {name.rsplit(".", 1)[-1]: name for name in reversed(allowed)}
    names |= {common: name for common, name in COMMON_NAMES.items() if name in allowed}
    found = difflib.get_close_matches(word.rsplit(".", 1)[-1], names, n=1, cutoff=0.5)
    return f"; did you mean {names[found[0]]}?" if found else ""


def nearest_key(key: str, keys: list[str]) -> str:
    """Return what `nearest` does; where a part of the config is named, only from there, or else what it has."""
    part, _, last = key.rpartition(".")
    own = [name.removeprefix(f"{part}.") for name in keys if part and name.startswith(f"{part}.")]
    if not own:
        return nearest(key, keys)
    near = difflib.get_close_matches(last, own, n=1, cutoff=0.6)
    if near and last not in COMMON_NAMES:
        return f"; did you mean {part}.{near[0]}?"
    same = [name for name in keys if name == COMMON_NAMES.get(last) or name.endswith(f".{last}")]
    return f"; did you mean {same[0]}?" if len(same) == 1 else f"; {part} has {', '.join(own)}"


def config_groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Return the config groups and their choices, with those of the user's own folder."""
    groups: dict[str, list[str]] = {}
    for root in (files(CONF), *([Path(config_dir)] if config_dir and Path(config_dir).is_dir() else [])):
        for folder in root.iterdir():
            if folder.is_dir() and folder.name not in ("__pycache__", "hydra", "reproduction"):
                names = {f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")}
                groups[folder.name] = sorted(names.union(groups.get(folder.name, [])))
    return groups


def known_keys(group_choices: list[str], flags: HydraFlags) -> list[str]:
    """Return every key that can be overridden, with the given choices of groups."""
    with composing(flags) as compose_with:
        try:
            composed = compose_with(group_choices)
        except (HydraException, OmegaConfBaseException):
            composed = compose_with([])
    plain = OmegaConf.to_container(composed, resolve=False)

    def walk(prefix: str, node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{prefix}{key}"
                yield from walk(f"{prefix}{key}.", value)

    return [*walk("", plain), "hydra.run.dir", "hydra.sweep.dir"]
