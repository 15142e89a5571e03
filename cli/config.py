"""`gvc config`: explain config groups, choices and keys."""

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from .options import GROUPS, ConfigDir, complete_key, starting

if TYPE_CHECKING:
    from grouped_lm.runs.schema import Part


def config(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GROUP | GROUP=CHOICE | KEY]...",
            help="Such as head, head=shortlist, optim.lr. Without any: all groups and their choices.",
            autocompletion=complete_key,
        ),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Explain config groups, choices and keys: default, unit, range and meaning.

    Example: gvc config optim.lr head=shortlist
    """
    with starting():
        from grouped_lm.errors import ConfigError
        from grouped_lm.runs.schema import list_keys, list_parts
        from grouped_lm.system.console import print_lines

        from .compose.compose import check_config_files, config_groups
        from .compose.explain import nearest

    if config_dir:
        check_config_files(Path(config_dir))
    groups = config_groups(config_dir)
    keys = {key.path for part in list_parts() for key in list_keys(part)}
    parts = {part.path for part in list_parts() if part.path}
    if not words:
        print_groups(groups, sorted(parts - groups.keys()))
    for word in words or []:
        group, _, choice = word.partition("=")
        if choice and choice in groups.get(group, []):
            print_choice(group, choice, config_dir)
        elif "=" in word and group in groups:
            raise ConfigError(
                f"{word} is not known{nearest(choice, groups[group])}; there are {', '.join(groups[group])}"
            )
        elif group in keys:
            print_lines(explain_key(group))
        elif group in groups or group in parts:
            print_part(group, groups.get(group, []), config_dir)
        else:
            known = [*keys, *groups, *parts]
            raise ConfigError(f"{word} is no group and no key{nearest(group, known)}; `gvc config` lists the groups")


def print_groups(groups: dict[str, list[str]], others: list[str]) -> None:
    """Print the groups with their choices, the default one first, and the parts that are no groups."""
    from grouped_lm.system.console import print_entries, print_lines

    defaults = default_choices()
    entries = []
    for group in sorted(groups, key=lambda group: GROUPS.index(group) if group in GROUPS else len(GROUPS)):
        chosen = defaults.get(group)
        text = ", ".join(choice for choice in groups[group] if choice != chosen)
        entries.append((f"{group}={chosen}" if chosen else group, f"or {text}" if chosen else text))
    print_entries(entries)
    print_lines(
        [
            "",
            f"Keys without a group: name, seed, init_from, {', '.join(f'{part}.*' for part in others)}.",
            "gvc config GROUP, GROUP=CHOICE or KEY explains one, such as gvc config head, gvc config head=shortlist, "
            "gvc config train or gvc config optim.lr.",
        ]
    )


def default_choices() -> dict[str, str]:
    """Return the choice of every group in a plain `gvc train`: the default head chooses its grouping."""
    lines = yaml.safe_load(files("grouped_lm.conf").joinpath("config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {key: value for line in lines if isinstance(line, dict) for key, value in line.items() if value}
    for line in read_choice("head", chosen["head"])[1].get("defaults", []):
        chosen |= {re.sub(r"override /(\w+).*", r"\1", key): value for key, value in line.items()}
    return chosen


def read_choice(group: str, choice: str, config_dir: str | None = None) -> tuple[str, dict[str, Any], str]:
    """Return the comment at the top of a choice's file, its values, and the rest of the file as it is."""
    from grouped_lm.errors import ConfigError

    own = Path(config_dir or ".") / group / f"{choice}.yaml"
    file = own if config_dir and own.is_file() else files("grouped_lm.conf") / group / f"{choice}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    about = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
    body = "\n".join(line for line in lines if not line.startswith("#"))
    try:
        values = yaml.safe_load(body) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold keys and values, NAME: VALUE, got a {type(values).__name__}")
    return " ".join(about), values, body


def print_choice(group: str, choice: str, config_dir: str | None) -> None:
    """Print what a choice is, and its keys: the value in this choice, range, unit and meaning."""
    from grouped_lm.runs.schema import list_parts
    from grouped_lm.system.console import print_entries, print_lines

    about, values, body = read_choice(group, choice, config_dir)
    print_lines([f"{group}={choice}: {about}" if about else f"{group}={choice}", ""])
    named = values.get("source" if group == "data" else "name", choice)
    part = next((p for p in list_parts() if p.path == group and p.choice in ("", named)), None)
    if part is None:  # a preset: values of several parts
        print(body.strip())
    else:
        print_entries(key_entries(part, values) or [("It has no options.", "")])


def key_entries(part: "Part", values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the keys of a part with their values, those in `values` or else the defaults, and their meanings."""
    from grouped_lm.runs.schema import list_keys, show_value

    entries = []
    for key in list_keys(part):
        if not key.path.endswith((".name", ".source")):
            value = show_value(values.get(key.path.rpartition(".")[2], key.default))
            allowed = " ".join(filter(None, [key.limits, key.unit]))
            entries.append((f"{key.path}={value}" + (f"  {allowed}" if allowed else ""), key.meaning.replace("`", "")))
    return entries


def print_part(group: str, choices: list[str], config_dir: str | None) -> None:
    """Print the choices of a group, each with the comment of its file, or the keys of a part that is no group."""
    from grouped_lm.runs.schema import list_parts, show_value
    from grouped_lm.system.console import print_entries

    if not choices:
        print_entries(entry for part in list_parts() if part.path == group for entry in key_entries(part, {}))
        return
    default, entries = default_choices().get(group), []
    for choice in choices:
        about, values, _ = read_choice(group, choice, config_dir)
        about = about or ", ".join(f"{key} {show_value(value)}" for key, value in values.items() if key != "name")
        entries.append((f"{group}={choice}" + ("  (default)" if choice == default else ""), about))
    print_entries(entries)


def explain_key(path: str) -> list[str]:
    """Return the lines that explain a key; a key that several choices have with other words is explained for each."""
    from grouped_lm.runs.schema import list_keys, list_parts, show_value

    owners: dict[tuple[str, str, str, str, str, bool], list[str]] = {}
    for part in list_parts():
        for key in list_keys(part):
            if key.path == path:
                words = (key.meaning, key.kind, show_value(_default(key)), key.unit, key.limits, key.is_free)
                owners.setdefault(words, []).append(part.label)
    lines = []
    for (meaning, kind, default, unit, limits, is_free), labels in owners.items():
        of = f" ({', '.join(labels)})" if any("=" in label for label in labels) else ""
        meaning = meaning.replace("`", "")
        lines += [f"{path}{of}: {meaning}", f"  type     {kind}", f"  default  {default}"]
        lines += [f"  unit     {unit}"] * bool(unit) + [f"  allowed  {limits}"] * bool(limits)
        lines.append(f"  change   {'at any time' if is_free else 'in a new run only: it decides what a run computes'}")
    return lines


def _default(key: Any) -> Any:
    """Return the value of a key in the default choice of its group, if that choice has the key."""
    group, _, name = key.path.rpartition(".")
    choice = default_choices().get(group)
    values = read_choice(group, choice)[1] if choice else {}
    return values.get(name, key.default) if group == "model" else key.default
