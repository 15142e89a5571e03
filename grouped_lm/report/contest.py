"""What the jobs of a contest belong to, as `gvc sweep` notes it in the sweep's folder, and its places."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.query import Row
from grouped_lm.system.files import read_json_dict, shared_lock, write_json
from grouped_lm.system.tables import group_rows

NOTES = "contest.json"
SETTING = ("data", "body", "n_embd", "n_layer", "steps", "tokens")
"""Columns in which heads must be equal to be compared at equal tokens."""
BUDGET = ("data", "minutes", "threads", "machine")
"""Columns in which heads must be equal to be compared at equal time."""
BODY = ("body", "n_embd", "n_layer", "steps", "tokens")
EXACT = "dense,trim"
"""The reference of contests: the best full softmax, over all tokens or over those of the text."""


def note_jobs(folder: Path, jobs: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Add the notes of jobs to those in the sweep's folder.

    `jobs` has them by the names of the jobs' folders and the hashes of their configs: a folder can still have the run
    of another config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with shared_lock(folder / f".{NOTES}.lock"):
        notes = read_json_dict(folder / NOTES) or {}
        for name, own in jobs.items():
            notes[name] = notes.get(name, {}) | own
        write_json(folder / NOTES, notes)


def notes_of(run: Path) -> dict[str, Any]:
    """Return the notes of a run: its `contest`, `command`, `minutes` and `threads`; empty for other runs."""
    notes = read_json_dict(run.parent / NOTES) or {}
    return dict(notes.get(run.name, {}).get((RunFolder(run).read_result() or {}).get("config_hash"), {}))


@dataclass(frozen=True, slots=True)
class Place:
    """Rows that are compared with each other."""

    title: str
    name: str
    """Part of a file's name."""
    rows: list[Row]
    timed: bool
    """Whether the heads had equal time, and bodies of their own; else they had equal tokens and one body."""
    choice: tuple[str, ...]
    """Columns whose values were chosen for each head: the learning rate, and the body at equal time."""
    reference: str
    """Heads of which the best is the reference, with commas."""


def places(rows: Sequence[Row]) -> list[Place]:
    """Return the places of a leaderboard in the order of their settings."""
    found = []
    tokens = [row for row in rows if not row["minutes"]]
    for values, own in group_rows(sorted(tokens, key=lambda row: [row[key] for key in SETTING]), SETTING).items():
        title = "{}, {} of width {}, {} layers, {} steps, {} tokens".format(*values)
        name = "leaderboard-{}-{}-{}x{}-{}-{}".format(*values)
        reference = EXACT if any(row["contest"] for row in own) else "dense"
        found.append(Place(title, name, own, False, ("lr",), reference))
    timed = sorted((row for row in rows if row["minutes"]), key=lambda row: [_number(row[key]) for key in BUDGET])
    machines = sorted({row["machine"] for row in timed})
    for (data, minutes, threads, machine), own in group_rows(timed, BUDGET).items():
        cores = "core" if threads == "1" else "cores"
        title = f"{data}, {minutes} minutes on {threads} {cores} ({machine}), each head with its best body"
        name = f"equal-time-{data}-{minutes}x{threads}"
        name += f"-{machines.index(machine) + 1}" if len(machines) > 1 else ""
        found.append(Place(title, name, own, True, ("lr", *BODY), EXACT))
    return found


def _number(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return 0.0, text
