"""Compose configs with Hydra: flags and overrides in, one typed `Config` per job out."""

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from grouped_lm.bench.variants import load_variants
from grouped_lm.config import Config, TrainConfig, check_choice
from grouped_lm.errors import ConfigError

CONF = "grouped_lm.conf"
BENCH_CONFIG = "gvc_bench"
"""The primary config of `gvc bench`."""
VARIANT_KEYS = ("label", "description", "screen")
"""What a file of the group `variant` says of itself. All else in it is part of the whole config."""
MAX_BYTES = 1 << 20
MAX_NODES = 100_000
"""Most nodes of a user's config file with its aliases expanded. Our largest config has 100."""
WHOLE_CONFIG = "`# @package _global_`, so that its keys are those of the whole config"
"""The first line of a file that chooses several parts of the config."""
NO_GROUPS = ("__pycache__", "hydra", "reproduction")
"""Folders of `conf` that are no config groups."""


WANDB_VARIABLES = {
    "mode": "WANDB_MODE",
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
}
"""Keys of `tracking`, and the variables of W&B that give their defaults (`conf/tracking/wandb.yaml`)."""
OLD_MODES = {"dryrun": "offline", "run": "online"}
"""Values of WANDB_MODE that W&B still knows."""


def env_value(name: str) -> str:
    """Return the value of an environment variable, "" if it is not set."""
    value = os.environ.get(name, "").strip()
    return OLD_MODES.get(value, value) if name == "WANDB_MODE" else value


@dataclass(kw_only=True, slots=True)
class ComposedTrain(TrainConfig):
    """`train` as config files may give it: `micro_batch_size` also has the word auto."""

    micro_batch_size: Any = TrainConfig().micro_batch_size


@dataclass(kw_only=True, slots=True)
class ComposedConfig(Config):
    """What Hydra composes: the config of a run, and two parts that runs do not keep.

    They are the label and description of a variant, and the settings of a contest.
    """

    train: ComposedTrain = field(default_factory=ComposedTrain)
    variant: Any = None
    contest: Any = None
    optim: Any = None  # the group optim fills it, as it fills head


# The schema, and resolvers for the names of run folders. At import, because worker processes of launchers need them.
ConfigStore.instance().store(name="gvc_schema", node=ComposedConfig)
OmegaConf.register_new_resolver("gvc_env", lambda name, default: env_value(name) or default, replace=True)
OmegaConf.register_new_resolver("gvc_slug", lambda value: re.sub(r"[^\w.+-]", "_", str(value)), replace=True)
OmegaConf.register_new_resolver("gvc_unique", lambda: secrets.token_hex(4), use_cache=True, replace=True)


@dataclass(kw_only=True, slots=True)
class HydraFlags:
    """Hydra's flags, as Typer parsed them."""

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
        """Whether Hydra prints something instead of running the task."""
        return self.cfg is not None or self.info is not None

    def argv(self) -> list[str]:
        """Return the flags as words of Hydra's command line."""
        words = [f"--{name}" for name in ("multirun", "resolve") if getattr(self, name)]
        given = {name: getattr(self, name) for name in ("cfg", "package", "info")}
        words += [f"--{name}={value}" for name, value in given.items() if value is not None]
        return words + (["--config-dir", str(Path(self.config_dir).absolute())] if self.config_dir else [])

    def check(self) -> None:
        """Raise `ConfigError` for flags that Hydra would ignore or misread, or answer with its own usage."""
        if self.config_dir:
            check_config_files(Path(self.config_dir))
        if self.cfg is not None:
            check_choice("--cfg", self.cfg, ("job", "hydra", "all"))
        if self.info is not None:
            check_choice("--info", self.info, ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"))
        given = {"--multirun": self.multirun, "--cfg": self.cfg, "--info": self.info}
        asked = [name for name, value in given.items() if value]
        if len(asked) > 1:
            raise ConfigError(f"{' and '.join(asked)} exclude each other: leave one out")
        if self.cfg is None and (self.resolve or self.package is not None):
            raise ConfigError("--resolve and --package say how --cfg prints: add --cfg job")


def check_config_files(folder: Path) -> None:
    """Raise `ConfigError` unless the user's folder exists and Hydra can use each of its YAML files.

    A file must be small, also after Hydra expands it. It must not have the name of another file of ours, because
    Hydra would read ours in its place.
    """
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder")
    for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml"):
        for path in folder.glob(pattern):
            if path.stat().st_size > MAX_BYTES or expanded_nodes(path) > MAX_NODES:
                raise ConfigError(f"{path} is too large for a config: it expands to more than {MAX_NODES:,} values")
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{path} is not UTF-8 at byte {error.start}; convert it, for instance with iconv"
                ) from error
            ours = files(CONF).joinpath(*path.relative_to(folder).parts)
            if ours.is_file() and ours.read_bytes() != path.read_bytes():
                raise ConfigError(f"{path} has the name of a file of gvc and would not be used: give it another name")


def expanded_nodes(path: Path) -> int:
    """Return the number of nodes of a YAML file with its aliases expanded. A small file can expand to a huge tree."""
    sizes: dict[str, int] = {}
    total, open_nodes = 0, []
    try:
        for event in yaml.parse(path.read_bytes(), Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                total += sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.NodeEvent):
                total += 1
                if isinstance(event, yaml.CollectionStartEvent):
                    open_nodes.append((event.anchor, total - 1))
                elif event.anchor:
                    sizes[event.anchor] = 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                if anchor:
                    sizes[anchor] = total - before
    except (yaml.YAMLError, RecursionError):
        return 0  # Hydra reports the error when it reads the file
    return total


@contextmanager
def composing(flags: HydraFlags) -> Iterator[Callable[..., DictConfig]]:
    """Yield a function that composes overrides without a run, after a check of --config-dir."""
    if flags.config_dir:
        check_config_files(Path(flags.config_dir))

    def compose_with(overrides: list[str], **kwargs: Any) -> DictConfig:
        check_overrides(overrides, flags)
        return compose(config_name=flags.config_name, overrides=overrides, **kwargs)

    with initialize_config_module(config_module=CONF, version_base="1.3", job_name="gvc"):
        if flags.config_dir:
            loader: Any = GlobalHydra.instance().config_loader()
            loader.get_search_path().prepend("command-line", f"file://{Path(flags.config_dir).absolute()}", "schema")
            loader.repository.initialize_sources(loader.get_search_path())
        yield compose_with


def to_config(composed: DictConfig) -> Config:
    """Return the typed config. It refuses what Hydra lets pass, such as `+typo=1`, NaN, or a negative count."""
    from grouped_lm.runs.load import PARSERS  # imports torch, which --cfg and --info need not wait for
    from grouped_lm.runs.plugins import load_plugins

    load_plugins()
    plain: Any = OmegaConf.to_container(composed, resolve=True)  # a typed node would carry added keys along
    described = plain.pop("variant", None) or {}
    if wrong := [key for key in described if key not in VARIANT_KEYS]:
        raise ConfigError(f"unknown key variant.{wrong[0]}: the first line of a variant's file must be {WHOLE_CONFIG}")
    label = described.get("label")
    variant = next((v for v in load_variants().values() if v.label == label), None) if label else None
    if variant and variant.head["name"] != plain["head"]["name"]:
        raise ConfigError(two_heads(variant.name, plain["head"]["name"]))
    plain.pop("contest", None)
    if plain["train"]["micro_batch_size"] == "auto":
        plain["train"] |= {"micro_batch_size": TrainConfig().micro_batch_size, "auto_micro_batch": True}
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
    """Return the overrides as Hydra parses them. While it composes, it also knows the choices of head=glob(d*)."""
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None
    return OverridesParser.create(config_loader=loader).parse_overrides(overrides)


def quoted(text: str) -> str:
    """Return `text` in quotes, so that Hydra takes it literally."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def expand_jobs(overrides: list[str], params: dict[str, Any]) -> list[list[str]]:
    """Return the overrides of every job of a multirun, without ranges that only a sweeper can fill."""
    parsed = parse([f"{key}={value}" for key, value in params.items()] + overrides)
    discrete = [o for o in parsed if not o.is_sweep_override() or o.is_discrete_sweep()]
    return [job for batch in BasicSweeper.split_arguments(discrete, None) for job in batch]


def check_folders(overrides: list[Override]) -> None:
    """Raise `ConfigError` for an empty folder name, such as an unset shell variable: it means the current folder."""
    for override in overrides:
        if override.key_or_group in ("hydra.run.dir", "hydra.sweep.dir") and not str(override.value() or "").strip():
            raise ConfigError(f"{override.key_or_group} is empty: name a folder, or leave it out")


def check_overrides(overrides: list[str], flags: HydraFlags) -> None:
    """Refuse what Hydra composes, but not as the user means it.

    data.source=NAME would keep the options of another source. ~optim.lr would be the default of the library.

    Raises:
        ConfigError: with the override to write instead.
    """
    for override in parse(overrides):
        key = override.key_or_group
        if override.is_delete() and key.startswith(("head.", "optim.")):
            raise ConfigError(f"{override.input_line}: a key cannot be removed; write {key}=VALUE")
        if key == "data.source":
            choices = config_groups(flags.config_dir)["data"]
            name = override.value() if override.value() in choices else f"NAME, one of {', '.join(choices)}"
            raise ConfigError(f"{override.input_line} sets no options of that source: write data={name}")


def compose_jobs(overrides: list[str], flags: HydraFlags) -> list[tuple[Config, Path | None]]:
    """Return the checked config of every job, and its run folder if there is one job. No folder is made."""
    check_folders(parse(overrides))
    with composing(flags) as compose_with:
        sweeps = [o.input_line or "" for o in parse(overrides) if o.is_sweep_override()] if flags.multirun else []
        plain = [o for o in overrides if o not in sweeps]
        base = compose_with(plain, return_hydra_config=True)
        check_base(base, flags)
        is_multirun = flags.multirun or str(base.hydra.mode).endswith("MULTIRUN")
        if not is_multirun:
            return [(to_config(compose_with(overrides)), Path(base.hydra.run.dir))]
        jobs = expand_jobs(overrides, dict(base.hydra.sweeper.get("params") or {}))
        return [(to_config(compose_with(job)), None) for job in jobs]


def check_base(base: DictConfig, flags: HydraFlags) -> None:
    """Raise `ConfigError` for a primary config without our defaults, and for a contest, which is more than its jobs."""
    if any(part.name not in base for part in fields(Config)):
        path = Path(flags.config_dir or "") / f"{flags.config_name}.yaml"
        raise ConfigError(f"{path} lacks parts of the config: begin it with `defaults: [config, _self_]`")
    if base.get("contest"):
        name = base.hydra.runtime.choices.get("sweep")
        raise ConfigError(f"sweep={name} is a contest, whose later jobs follow from earlier ones: gvc sweep {name}")


def config_groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Return the config groups and their choices, with those in the user's folder."""
    groups: dict[str, list[str]] = {}
    for root in (files(CONF), *([Path(config_dir)] if config_dir and Path(config_dir).is_dir() else [])):
        for folder in root.iterdir():
            if folder.is_dir() and folder.name not in NO_GROUPS:
                names = {f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")}
                groups[folder.name] = sorted(names.union(groups.get(folder.name, [])))
    return groups
