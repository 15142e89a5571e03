"""`gvc diff`: two runs side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from grouped_lm.evaluate.run import read_story_losses
from grouped_lm.evaluate.significance import compare_checkpoints
from grouped_lm.evaluate.tables import print_comparison
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.identity import iter_settings
from grouped_lm.runs.inputs import changed_inputs
from grouped_lm.runs.load import load_config
from grouped_lm.runs.query import text_of
from grouped_lm.runs.schema import show_value
from grouped_lm.runs.table import read_row
from grouped_lm.system.console import CLOSING_ROWS, print_lines, print_table
from grouped_lm.system.files import read_json_dict
from grouped_lm.system.tables import Column, Table, columns, show

MACHINE = ("cpu", "cpu_count", "gpu", "device", "threads", "platform")
VERSIONS = ("commit", "python", "libraries")
PER_TOKEN = ("val/loss", "val/perplexity", "val/loss_head", "val/loss_prior", "val/loss_weight")
"""Figures that compare only where text and tokenizer are the same."""
LOSSES = ("val/loss", "val/bits_per_byte", "val/group_accuracy", "val/token_in_group_accuracy")
"""Figures whose difference is shown; of others the ratio is."""


def compare_two(first: Path, second: Path) -> dict[str, Any]:
    """Return the differences of two runs, ready for JSON.

    Raises:
        RunFolderError, SchemaError: one of them is no run folder that can be read.
    """
    paths = (first, second)
    settings = [dict(_settings(path)) for path in paths]
    keys = sorted(settings[0].keys() | settings[1].keys())
    rows = [read_row(path) for path in paths]
    places = [RunFolder(path).read_environment() for path in paths]
    found: dict[str, Any] = {
        "runs": [str(path) for path in paths],
        "states": [row["state"] for row in rows],
        "config": {key: [one.get(key, "-") for one in settings] for key in keys if _differ(settings, key)},
        "figures": {key: [row.get(key) for row in rows] for _, key, _ in CLOSING_ROWS},
        "same_text": text_of(rows[0]) == text_of(rows[1]),
        "same_tokenizer": len({load_config(path).tokenizer.label for path in paths}) == 1,
        "inputs": input_changes(first, second),
        "machine": {key: [place.get(key) for place in places] for key in MACHINE if _differ(places, key)},
        "versions": {key: [place.get(key) for place in places] for key in VERSIONS if _differ(places, key)},
        "checkpoints": [],
    }
    losses = [read_story_losses(path) for path in paths]
    losses = [
        own if own and own.step == row.get("trainer/step") else None for own, row in zip(losses, rows, strict=True)
    ]
    if losses[0] is not None and losses[1] is not None and losses[0].sha256 == losses[1].sha256:
        tested = compare_checkpoints(losses[0].nll, losses[1].nll, losses[0].tokens)
        found["checkpoints"] = [{"first": str(first), "second": str(second)} | asdict(tested)]
    return found


def input_changes(first: Path, second: Path) -> str:
    """Return how the texts, tokenizer files and first weights of two runs differ, "" if they do not or it is unknown.

    A text of another kind is not described: the config keys that differ say so.
    """
    inputs = [read_json_dict(RunFolder(path).inputs) or {} for path in (first, second)]
    one, other = ({key: own for key, own in values.items() if isinstance(own, dict)} for values in inputs)
    alike = [key for key in one.keys() & other.keys() if one[key].get("source") == other[key].get("source")]
    try:
        return changed_inputs({key: one[key] for key in alike}, {key: other[key] for key in alike})
    except (KeyError, TypeError, AttributeError):  # a damaged file
        return ""


def _settings(path: Path) -> Any:
    return ((key, value) for key, _, value in iter_settings(load_config(path)) if key not in ("tracking", "judge"))


def _differ(values: list[dict[str, Any]], key: str) -> bool:
    return bool(values[0].get(key) != values[1].get(key))


def print_diff(found: dict[str, Any]) -> None:
    """Print the differences of two runs."""
    names = [Path(run).name for run in found["runs"]]
    names = found["runs"] if names[0] == names[1] else names
    pair = [Column(name, str(place)) for place, name in enumerate(names)]
    rows = [{"key": key, "0": show_value(a), "1": show_value(b)} for key, (a, b) in found["config"].items()]
    if rows:
        print_table(Table(columns=[Column("key", "key"), *pair], rows=rows, title="Config").terminal())
    else:
        print("The configs are equal.")
    figures = [_figure(column, found["figures"][column.key], found["same_text"]) for column in CLOSING_ROWS]
    shown = [row for row in figures if row]
    numbers = [Column(name, str(place), "{:}") for place, name in enumerate(names)]
    change = columns("second to first = change {:}")
    if shown:
        print_table(
            Table(columns=[Column("figure", "figure"), *numbers, *change], rows=shown, title="Figures").terminal()
        )
    if found["checkpoints"]:
        print_comparison({"checkpoints": found["checkpoints"], "methods": []})
    print_lines(notes(found))


def _figure(column: Column, figures: list[Any], same_text: bool) -> dict[str, str] | None:
    """Return a line of the table of figures; None if neither run has the figure."""
    (label, key, form), (first, second) = column, figures
    if first is None and second is None:
        return None
    change = ""
    if key in PER_TOKEN and not same_text:
        change = "-"
    elif first and second is not None:
        change = f"{second - first:+.4f}" if key in LOSSES else f"x {second / first:.3f}"
        if key in LOSSES and form.endswith("%}"):
            change = f"{100 * (second - first):+.1f} points"
    return {"figure": label, "0": show(first, form), "1": show(second, form), "change": change}


def notes(found: dict[str, Any]) -> list[str]:
    """Return sentences on states, texts, machines and versions, and on what may not be compared."""
    first, second = found["runs"]
    lines = [
        f"{run} is {state}." for run, state in zip(found["runs"], found["states"], strict=True) if state != "complete"
    ]
    if found["inputs"]:
        lines.append(f"Inputs differ: {found['inputs']}.")
    if not found["same_text"]:
        lines.append("Texts or tokenizers differ: losses per token do not compare; bits per byte do on one text.")
    if not found["checkpoints"] and found["same_tokenizer"]:
        text = "" if found["same_text"] else " --data FILE"
        lines.append(f"No test of the losses: gvc eval {first} {second}{text} measures both on one text.")
    if found["machine"]:
        lines.append(f"Machines differ ({_changes(found['machine'])}): speed and memory do not compare.")
    if found["versions"]:
        lines.append(f"Versions differ: {_changes(found['versions'])}.")
    elif not found["machine"]:
        lines.append("Machine, commit and libraries are the same.")
    return lines


def _changes(values: dict[str, Any]) -> str:
    """Return `commit abc to def, torch 2.1 to 2.2`."""
    parts = []
    for key, (a, b) in values.items():
        if isinstance(a, dict) and isinstance(b, dict):
            parts += [f"{name} {a.get(name)} to {b.get(name)}" for name in sorted(a | b) if a.get(name) != b.get(name)]
        else:
            short = [str(value)[:12] if key == "commit" else str(value) for value in (a, b)]
            parts.append(f"{key} {short[0]} to {short[1]}")
    return ", ".join(parts)
