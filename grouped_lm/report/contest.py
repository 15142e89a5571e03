"""What the jobs of a contest belong to, as `gvc sweep` notes it in the sweep's folder."""

from pathlib import Path
from typing import Any

from grouped_lm.system.files import read_json_dict, write_json

NOTES = "contest.json"


def note_jobs(folder: Path, jobs: dict[str, dict[str, Any]]) -> None:
    """Add the notes of jobs, by the names of their folders, to those in the sweep's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NOTES, (read_json_dict(folder / NOTES) or {}) | jobs)


def notes_of(run: Path) -> dict[str, Any]:
    """Return the notes of a run: its `contest`, `command`, `minutes` and `threads`; empty for other runs."""
    return dict((read_json_dict(run.parent / NOTES) or {}).get(run.name, {}))
