"""The steps of a reproduction: lists of commands that a user can read and type.

In a command, {out} is the folder of the reproduction, {scale} the name of the list, {name} the name of the step.
{stories} and {other} are the overrides that name a text. {cpu_dtype} is bfloat16 where the CPU has instructions for it,
else float32. {run} is a run folder, for steps that go through runs.
"""

import hashlib
import re
import shlex
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from grouped_lm.config import check_label, parse_fields
from grouped_lm.data.sources.text_files import file_sha256
from grouped_lm.errors import ConfigError, DataError

SCALES = ("smoke", "cpu", "cpu-long", "paper")
ROLES = ("stories", "other")
"""The text that the claims are about, and another text."""
STORIES = "tinystories"
"""The name of the text that the claims are about begins with this."""
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Names of such instructions in Linux's /proc/cpuinfo, on x86 and ARM."""
SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command, or one for every run of an earlier step."""

    name: str
    about: str
    minutes: float
    """Planned time on the machine that the scale is for."""
    command: str
    each: str | None = None
    """A pattern of run folders below {out}. The command runs once for each complete run, with {run}."""
    makes: str | None = None
    """With `each`: the file in the run folder that the command makes."""
    side_by_side: int = 1
    """With `each`: number of commands at a time, at most the number of cores."""
    keeps_stdout: bool = False
    """Whether `makes` gets what the command prints."""
    always: bool = False
    """Whether it runs again when it is done already."""

    @property
    def needs(self) -> list[str]:
        """Roles of the texts that the command reads."""
        return [role for role in ROLES if f"{{{role}}}" in self.command]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A list of steps for one kind of machine."""

    name: str
    about: str
    machine: str
    minutes: float
    """Longest time of all steps together on that machine."""
    texts: dict[str, str | None]
    """Role -> overrides. None: the user must name a text."""
    steps: list[Step]


def load_scale(name: str) -> Scale:
    """Return a scale of `conf/reproduction` by its name, or that of a file of the user, whose path ends in .yaml.

    Raises:
        ConfigError: there is no such scale, or its file has a wrong form.
    """
    if name.endswith(".yaml"):
        path: Any = Path(name)
    elif name in SCALES:
        path = files("grouped_lm.conf") / "reproduction" / f"{name}.yaml"
    else:
        raise ConfigError(f"--scale must be one of {', '.join(SCALES)} or a .yaml file, got {name!r}")
    given = f"--scale {name}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        steps = [parse_fields(Step, entry, f"{given}: a step") for entry in values.pop("steps")]
        scale = parse_fields(Scale, values | {"name": Path(name).name.removesuffix(".yaml"), "steps": steps}, given)
    except OSError as error:
        raise ConfigError(f"{given} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        known = ", ".join(f.name for f in fields(Step))
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{given} is no list of steps with {known} ({reason})") from error
    check_label(given, scale.name)
    if set(scale.texts) - set(ROLES) or not all(isinstance(v, str | None) for v in scale.texts.values()):
        raise ConfigError(f"{given}: texts must be overrides, or null, of {' and '.join(ROLES)}, got {scale.texts}")
    names = [step.name for step in scale.steps]
    for step in scale.steps:
        check_step(step, f"{given}: step {step.name!r}")
        if names.count(step.name) > 1:
            raise ConfigError(f"{given}: step {step.name!r} is there twice")
    return scale


MARKS = ("{out}", "{scale}", "{name}", "{stories}", "{other}", "{cpu_dtype}", "{run}")
"""Placeholders of a command."""


def check_step(step: Step, where: str) -> None:
    """Check a step before any step runs.

    Raises:
        ConfigError: the first mistake; the message begins with `where`.
    """
    check_label(f"{where}: name", step.name)
    try:
        words = shlex.split(step.command)
    except ValueError as error:
        raise ConfigError(f"{where}: its command cannot be split into words ({error})") from error
    if words[:1] != ["gvc"] or len(words) < 2:
        raise ConfigError(f"{where}: its command must begin with gvc, got {step.command[:60]!r}")
    unknown = [mark for mark in re.findall(r"\{\w+\}", step.command) if mark not in MARKS]
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]} is none of {', '.join(MARKS)}")
    if (step.each is None) != ("{run}" not in step.command) or (step.each is None) != (step.makes is None):
        raise ConfigError(f"{where}: each, makes and {{run}} belong together: give all three or none")
    if step.side_by_side < 1 or not 0 < step.minutes < float("inf"):
        raise ConfigError(f"{where}: side_by_side and minutes must be above 0")
    for key, value in (("each", step.each), ("makes", step.makes)):
        if value is not None and (not value or Path(value).is_absolute() or ".." in Path(value).parts):
            raise ConfigError(f"{where}: {key} must be a path below the folder, got {value!r}")


def select_steps(scale: Scale, only: list[str]) -> list[Step]:
    """Return the named steps in the order of the list; all of them if `only` is empty.

    Raises:
        ConfigError: no step has that name.
    """
    known = [step.name for step in scale.steps]
    if wrong := [name for name in only if name not in known]:
        raise ConfigError(f"--only {wrong[0]}: {scale.name} has no such step; it has {', '.join(known)}")
    return [step for step in scale.steps if not only or step.name in only]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A folder with a training and a validation text."""

    name: str
    folder: Path
    train: str
    valid: str

    @property
    def role(self) -> str:
        """`stories` for the text that the claims are about, else `other`."""
        return ROLES[0] if self.name.startswith(STORIES) else ROLES[1]

    def sha256(self) -> str:
        """Return a hash of both files."""
        hashes = (file_sha256(self.folder / name) for name in (self.train, self.valid))
        return hashlib.sha256(b"".join(map(bytes.fromhex, hashes))).hexdigest()

    def overrides(self, below: Path) -> str:
        """Return the overrides that make a command read this text from `below`."""
        train, valid = (f"data.{split}={below / self.name / getattr(self, split)}" for split in ("train", "valid"))
        return shlex.join(["data=text", f"data.name={self.name}", train, valid])


def find_text(given: str) -> Text:
    """Return the text of `DIR` or `NAME=DIR`; without a name it is called like its folder.

    Raises:
        DataError: there is no such folder, or it does not hold one training and one validation file.
        ConfigError: the name cannot be part of a path.
    """
    name, _, rest = given.partition("=")
    if not rest or "/" in name:  # the folder's own path has the sign
        name, rest = "", given
    return text_in(Path(rest), name or Path(rest).resolve().name, given)


def text_in(folder: Path, name: str, given: str) -> Text:
    """Return the text of a folder by a name. Errors are those of `find_text`, and quote what was given."""
    check_label("--data NAME", name)
    if not folder.is_dir():
        raise DataError(f"--data {given}: {folder} is no folder; it takes one with train.txt and valid.txt")
    splits = {}
    for split in ("train", "valid"):
        here = [path.name for path in sorted(folder.glob(f"{split}.*")) if path.suffix in SUFFIXES]
        if len(here) != 1:
            have = ", ".join(here) or "none"
            raise DataError(f"--data {given}: {folder} must hold one {split}.txt, .jsonl or .parquet, it holds {have}")
        splits[split] = here[0]
    return Text(name=name, folder=folder, **splits)


def find_texts(given: list[str]) -> list[Text]:
    """Return the texts of `--data`, in any order.

    Raises:
        ConfigError: more than two texts, two of one name, or two for one role.
        DataError: a folder does not hold a text.
    """
    texts = [find_text(one) for one in given]
    names = ", ".join(text.name for text in texts)
    if len(texts) > len(ROLES) or len({text.name for text in texts}) < len(texts):
        raise ConfigError(f"--data takes one or two texts of different names, got {names}: NAME=DIR names one")
    if len({text.role for text in texts}) < len(texts):
        raise ConfigError(
            f"--data takes one text named {STORIES}..., which the claims are about, and one that is not, got {names}: "
            f"name them, --data {STORIES}=DIR --data NAME=DIR"
        )
    return texts


def cpu_dtype() -> str:
    """Return `bfloat16` if the processor has instructions for its products, else `float32`: bf16 is slower without."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return "float32"
    return "float32" if BF16_FLAGS.isdisjoint(flags) else "bfloat16"


def expand(step: Step, scale: str, out: Path, words: dict[str, str | None]) -> str:
    """Return the command of a step with everything but {run} filled in; `words` are texts and the dtype."""
    command, known = step.command, {"out": shlex.quote(str(out)), "name": step.name, "scale": scale, **words}
    for key, value in known.items():
        command = command.replace(f"{{{key}}}", value or f"{{{key}}}")
    return " ".join(command.split())
