"""Arguments and options that several commands share, and their completion in a shell."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
import yaml


def say(text: str) -> None:
    """Print lines on stderr; a terminal wraps them between words."""
    from grouped_lm.system import phases

    phases.say(text)


GROUPS = ("model", "head", "grouping", "data", "tokenizer", "optim", "prior", "tracking", "experiment", "variant")
"""The config groups that completion offers."""


_KEY_VALUE = re.compile(r"([+~]{0,2}[A-Za-z_][\w./@-]*)=(.+)", re.ASCII | re.DOTALL)
_SYNTAX = re.compile(r"['\"\[\]{}(),\\$]")
"""Characters with a meaning in Hydra's values: a value that has one is left as it is."""
_NEED_QUOTES = re.compile(r"[^\w\s./@:%*?|+-]", re.ASCII)
_TEXT_KEYS = {
    *("name", "init_from", "data.train", "data.valid", "data.cache_dir", "tokenizer.file", "train.mirror"),
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"),
}
"""Keys with names and paths: Hydra would take the folder 2024_11_30 for the number 20241130."""
_LIKE_A_NUMBER = re.compile(r"[+-]?[\d_.]*\d[\d_.]*(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def expand_home(value: str) -> str:
    """Return a path without its leading `~`, which no shell expands after an `=`."""
    return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value  # noqa: PTH111


def plain_value(word: str) -> str:
    """Return `KEY=VALUE` so that Hydra takes the value literally.

    That is for paths from the home folder, umlauts, `=`, `#`, and for names and paths that look like numbers.
    """
    found = _KEY_VALUE.fullmatch(word)
    if found is None or _SYNTAX.search(found[2]):
        return word
    key, value = found[1], expand_home(found[2])
    like_a_number = key.lstrip("+~") in _TEXT_KEYS and _LIKE_A_NUMBER.fullmatch(value)
    return f"{key}='{value}'" if like_a_number or _NEED_QUOTES.search(value) else f"{key}={value}"


def plain_values(words: list[str] | None) -> list[str] | None:
    """Return the words of a command, each as `plain_value` has it."""
    return words and [plain_value(word) for word in words]


@contextmanager
def starting() -> Iterator[None]:
    """Say on a terminal that the command loads its libraries, which takes seconds."""
    if not sys.stderr.isatty():
        yield
        return
    from grouped_lm.system.phases import phase

    with phase("starting"):
        yield


def choices_of(group: str) -> list[str]:
    """Return the choices of a config group, none if there is no such group. It needs no Hydra, so it is fast."""
    folder = files("grouped_lm.conf") / group
    names = [file.name for file in folder.iterdir()] if group.isidentifier() and folder.is_dir() else []
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return `GROUP=CHOICE` for a shell. Bash splits words at =, and is given the bare choices after it."""
    before = ctx.params.get("overrides") or []
    if before[-1:] == ["="]:
        return choices_of(before[-2]) if len(before) > 1 else []
    return [f"{group}={choice}" for group in GROUPS for choice in choices_of(group)]


def complete_key(incomplete: str) -> list[str]:
    """Return groups, choices and keys for `gvc config`."""
    groups = [*GROUPS, "sweep"]
    if "." not in incomplete:
        return [*groups, *(f"{group}={choice}" for group in groups for choice in choices_of(group))]
    from grouped_lm.runs.schema import list_keys, list_parts  # imports torch

    return sorted({key.path for part in list_parts() for key in list_keys(part)})


def complete_device(incomplete: str) -> list[str]:
    """Return the devices of `gvc plan` for a shell."""
    known = yaml.safe_load(files("grouped_lm.measure").joinpath("devices.yaml").read_text(encoding="utf-8"))
    return [*(name for family in known["devices"] for name in family["cards"]), "cpu"]


def complete_suite(incomplete: str) -> list[str]:
    """Return the suites of `gvc bench` for a shell."""
    from grouped_lm.bench.settings import SUITES

    return list(SUITES)


def complete_grid(incomplete: str) -> list[str]:
    """Return the grids of `gvc bench` for a shell."""
    return choices_of("bench")


def complete_scale(incomplete: str) -> list[str]:
    """Return the scales of `gvc reproduce` for a shell."""
    return [name for name in choices_of("reproduction") if name != "claims"]


def complete_run(incomplete: str) -> list[str]:
    """Return run folders for a shell: those in runs/ and in sweeps there, or in the folder that is being typed."""
    parent = Path(incomplete.rpartition("/")[0] or "/") if "/" in incomplete else Path("runs")
    return sorted(str(file.parent) for pattern in ("*", "*/*") for file in parent.glob(f"{pattern}/config.json"))


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets of `gvc sweep` for a shell."""
    return choices_of("sweep")


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config values, such as head=dense.",
        autocompletion=complete_override,
        callback=plain_values,
    ),
]
DEVICE_HELP = (
    "A card such as t4, l4, a100, v100, rtx3060, m2pro; cpu is this machine; or your own figures: "
    "tflops=40,gbps=500,gib=12."
)
SavedOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Replace values of the run's own config.", callback=plain_values),
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder, as gvc train prints it.", autocompletion=complete_run),
]


def check_file(option: str, path: Path | None) -> None:
    """Raise `ConfigError` if a file to write is a folder."""
    from grouped_lm.errors import ConfigError

    if path is not None and path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: name a file in it")


ConfigDir = Annotated[str | None, typer.Option(metavar="DIR", help="A folder with config files of your own.")]
ConfigName = Annotated[str, typer.Option(metavar="NAME", help="The primary config, here or in --config-dir.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
