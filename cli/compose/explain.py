"""Turn Hydra's errors into one line: which override or file, what is allowed, and the nearest name."""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grouped_lm.bench.variants import load_variants
from grouped_lm.errors import ConfigError, GvcError

from .compose import BENCH_CONFIG, CONF, WHOLE_CONFIG, HydraFlags, composing, config_groups, parse, quoted, two_heads

NAMES = yaml.safe_load(files("grouped_lm.cli.compose").joinpath("names.yaml").read_text(encoding="utf-8"))
COMMON_NAMES: dict[str, str] = NAMES["common"]
"""What other trainers call our keys: a misspelt one is looked up here too."""
RENAMED_KEYS: dict[str, str] = NAMES["renamed_keys"]
RENAMED_SWEEPS: dict[str, str] = NAMES["renamed_sweeps"]
"""Names of the release before, answered with the new name."""
EXTRAS = {"joblib": "sweep", "submitit": "sweep", "ray": "ray", "optuna": "optuna"}
"""A word in a plugin's name -> the extra of this package that installs it."""
QUOTES = "'\""
RAISED = (HydraException, OmegaConfBaseException, yaml.YAMLError)
RAISED_COMPOSING = (*RAISED, ValueError, TypeError, AssertionError, RecursionError)
"""Other errors that Hydra raises for odd overrides and files. Caught only while it composes, when none of our own code
runs."""
VALUE_KINDS = {
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
    "bool": "true or false",
    "string": "a text",
}
"""OmegaConf's name of a type -> ours."""


@contextmanager
def explained(
    overrides: list[str],
    flags: HydraFlags,
    raised: tuple[type[Exception], ...] = RAISED,
    saved: dict[str, Any] | None = None,
) -> Iterator[None]:
    """Raise a `ConfigError` of one line for each error of Hydra or OmegaConf.

    `saved` is the config of the run that the overrides change, if there is one.
    """
    try:
        yield
    except GvcError:
        raise
    except raised as error:
        if os.environ.get("GVC_DEBUG"):
            raise
        raise ConfigError(explain(error, overrides, flags, saved)) from error


@dataclass(frozen=True)
class Failure:
    """An error of Hydra's, with the overrides and flags that led to it."""

    error: Exception
    overrides: list[Override]
    flags: HydraFlags
    saved: dict[str, Any] | None = None

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The config groups and their choices."""
        return config_groups(self.flags.config_dir)


def explain(error: Exception, overrides: list[str], flags: HydraFlags, saved: dict[str, Any] | None = None) -> str:
    """Return one line for an error: the first cause that applies, else the first line of the error."""
    wrong = next((word for word in overrides if not is_override(word)), None)
    if wrong is not None:
        key, _, value = wrong.partition("=")
        quotes = f'; a value with spaces, =, quotes or brackets goes in quotes: "{key}={quoted_value(value)}"'
        return f"{wrong} is no override: write KEY=VALUE{quotes if key and value else ''}"
    failure = Failure(error, parse(overrides), flags, saved)
    try:
        return (
            renamed(failure)
            or unknown_choice(failure)
            or head_beside_variant(failure)
            or mistake_in_file(failure)
            or unknown_key(failure)
            or missing_plugin(str(error))
            or wrong_value(failure)
        )
    except RAISED_COMPOSING:
        return " ".join(str(error).split())[:300]  # the config files cannot be read at all


def renamed(failure: Failure) -> str | None:
    """Explain a key or sweep of the release before."""
    for override in failure.overrides:
        key, value = override.key_or_group, override.value()
        if key in RENAMED_KEYS:
            return f"{key}= is now {RENAMED_KEYS[key]}="
        if key == "sweep" and isinstance(value, str) and value in RENAMED_SWEEPS:
            return f"sweep {value} is now {RENAMED_SWEEPS[value]}"
    return None


def unknown_choice(failure: Failure) -> str | None:
    """Explain a choice that a config group does not have."""
    for override in failure.overrides:
        group, choice = override.key_or_group, override.value()
        if group not in failure.groups:
            continue
        known = failure.groups[group]
        if override.is_delete():
            return f"{override.input_line}: a choice cannot be removed; write {group}=NAME, one of {', '.join(known)}"
        if override.is_add() and "Multiple values" in str(failure.error):
            return f"{override.input_line}: {group} has a choice already; write {group}={choice}, without the +"
        if choice is None and "must be a string" in str(failure.error):
            return f"{group}=null: a choice is needed; there are {', '.join(known)}"
        if isinstance(choice, str | int | float) and str(choice) not in known:
            given = f"--grid {choice}" if group == "bench" else f"{group}={choice}"
            return f"{given} is not known{nearest(str(choice), known)}; there are {', '.join(known)}"
    return None


def head_beside_variant(failure: Failure) -> str | None:
    """Explain a head beside a variant of another head."""
    choices = {o.key_or_group: str(o.value()) for o in failure.overrides}
    variant = load_variants().get(choices.get("variant", ""))
    if variant and choices.get("head", variant.head["name"]) != variant.head["name"]:
        return two_heads(variant.name, choices["head"])
    return None


def mistake_in_file(failure: Failure) -> str | None:
    """Explain a mistake in a config file: a choice, a key or a value."""
    text, folder = str(failure.error), Path(failure.flags.config_dir or ".")
    absent = re.search(r"Could not find '(\w+)/([^']*)'", text)
    if absent and absent[1] in failure.groups:
        group, choice = absent[1], absent[2]
        names = [str(path) for path in sorted(folder.glob("*/*.yaml")) if choice in path.read_text(errors="replace")]
        where = names[0] if failure.flags.config_dir and names else "a config file"
        known = failure.groups[group]
        return f"{where}: {group}: {choice} is not known{nearest(choice, known)}; there are {', '.join(known)}"
    if packed := re.search(r"In '((?:experiment|sweep|variant)/[^']+)': Could not override '[^']*@", text):
        return f"{named_file(packed[1], failure)}: its first line must be {WHOLE_CONFIG}"
    found = re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)", text, re.DOTALL)
    key = found and re.search(r"full_key: (\S+)", found[2])
    if not found or not key:
        return None
    file = named_file(found[1], failure)
    if key[1] == found[1].split("/")[0] and key[1] in ("experiment", "sweep", "variant"):
        return f"{file}: its first line must be {WHOLE_CONFIG}"  # else Hydra puts it below its group's name
    if re.match(r"Key '.*' not in", found[2]):
        return f"{file}: unknown key {key[1]}{nearest_key(key[1], known_keys([], failure.flags))}"
    return f"{file}: {describe_value(key[1], found[2])}"


def named_file(config: str, failure: Failure) -> str:
    """Return the path of a config such as variant/mine, if it is the user's own, or else our name of it."""
    path = Path(failure.flags.config_dir or ".") / f"{config}.yaml"
    return str(path) if failure.flags.config_dir and path.is_file() else f"{config}.yaml"


def unknown_key(failure: Failure) -> str | None:
    """Explain a key that does not exist, and several values for a command that takes one."""
    groups = failure.groups
    chosen = {o.key_or_group: first_choice(o) for o in failure.overrides if o.key_or_group in groups}
    keys = known_keys(list(chosen.values()), failure.flags)
    if failure.saved is not None:  # its groups are those of the run, but for those that are chosen here
        own = {part: value for part, value in failure.saved.items() if part not in chosen}
        keys = [key for key in keys if key.partition(".")[0] in chosen] + list(walk(own))
    for override in failure.overrides:
        key = override.key_or_group
        if key not in groups and key not in keys and not key.startswith("hydra"):
            in_bench = failure.flags.config_name == BENCH_CONFIG
            where = "grouped_lm/bench/settings.py has" if in_bench else "`gvc train --cfg job` lists"
            if failure.saved is not None and key.partition(".")[0] not in chosen:
                where = "config.json of the run has"
            return f"unknown key {key}{nearest_key(key, keys)}{key_owners(key, groups)}; {where} them all"
        if override.is_sweep_override() and not failure.flags.multirun:
            to_do = "add -m to run a job for each" if failure.flags.may_sweep else "this command takes one"
            value = str(override.input_line).partition("=")[2]
            is_file = Path(value).expanduser().exists()
            quotes = f'; a name with a comma goes in quotes: "{key}={quoted(value)}"' if is_file else ""
            return f"{override.input_line} gives several values: {to_do}{quotes}"
    return None


def key_owners(key: str, groups: dict[str, list[str]]) -> str:
    """Return "; data.train belongs to data=text" for a key that other choices of its group have, else ""."""
    group, _, last = key.partition(".")
    paths = {choice: files(CONF) / group / f"{choice}.yaml" for choice in groups.get(group, []) if last}
    pattern = re.compile(rf"(?m)^{re.escape(last)}:")
    owners = [c for c, path in paths.items() if path.is_file() and pattern.search(path.read_text(encoding="utf-8"))]
    return f"; {key} belongs to {group}={' or '.join(owners)}" if owners else ""


def quoted_value(value: str) -> str:
    """Return a value in quotes; of a list, each part in quotes."""
    value = value.strip()
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(quoted(part.strip().strip(QUOTES)) for part in value[1:-1].split(','))}]"
    return quoted(value.strip(QUOTES))


def missing_plugin(message: str) -> str | None:
    """Return how to install the plugin that Hydra could not find, None for another message."""
    plugin = re.search(r"Could not (?:find|load) '?(hydra/(?:launcher|sweeper)/(\w+))", message)
    extra = plugin and next((extra for word, extra in EXTRAS.items() if word in plugin[2]), None)
    return f"{plugin[1]} is not installed: `pip install 'grouped-lm[{extra}]'` brings it" if plugin and extra else None


def wrong_value(failure: Failure) -> str:
    """Explain a value of the wrong type, or whatever else OmegaConf says about a key."""
    inner = failure.error.__cause__
    cause = inner if isinstance(inner, OmegaConfBaseException) else failure.error  # the inner one says more
    full_key, message = getattr(cause, "full_key", None), str(cause).strip()
    override = next((o for o in reversed(failure.overrides) if o.key_or_group == full_key), None)
    given = (override.input_line or "").partition("=")[2] if override else ""
    if override and override.is_delete():
        return f"{override.input_line}: a key cannot be removed; write {full_key}=VALUE"
    if "is not a ListConfig" in message:
        return f"{full_key} takes a list: write {full_key}=[{given}]"
    return describe_value(full_key, message, given) if full_key else message.split("\n")[0] or type(cause).__name__


def describe_value(key: str, message: str, given: str = "") -> str:
    """Return one line for OmegaConf's message about the value of a key."""
    kinds = r"Integer|Float|Boolean|bool|string"
    found = re.match(rf"(?:Value '(.*?)' (?:of type|is not)|Cannot convert '(.*?)' to).*?({kinds})", message)
    if found:
        return f"{key} takes {VALUE_KINDS[found[3]]}, got {given or found[1] or found[2]}"
    if "is not Optional" in message or "Incompatible value 'None'" in message:
        return f"{key} cannot be null: give a value"
    if "Invalid type assigned" in message:
        return f"{key} is a group of keys: write {key}.NAME=VALUE"
    return f"{key}: {message.strip().splitlines()[0]}"


def is_override(word: str) -> bool:
    """Return whether Hydra can parse `word`, and it names a key."""
    try:
        return bool(parse([word])[0].key_or_group)
    except HydraException:
        return False


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


def first_choice(override: Override) -> str:
    """Return the override of a group with the first of its values; of a pattern, whose choices Hydra finds, all."""
    if not override.is_discrete_sweep() or isinstance(override.value(), Glob):
        return override.input_line or ""
    return f"{override.key_or_group}={next(override.sweep_string_iterator())}"


def known_keys(group_choices: list[str], flags: HydraFlags) -> list[str]:
    """Return every key that can be overridden, with the given choices of groups."""
    with composing(flags) as compose_with:
        try:
            composed = compose_with(group_choices)
        except (HydraException, OmegaConfBaseException):
            composed = compose_with([])
    return [*walk(OmegaConf.to_container(composed, resolve=False)), "hydra.run.dir", "hydra.sweep.dir"]


def walk(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys of nested dicts, with dots."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from walk(value, f"{prefix}{key}.")
