"""Runs side by side, read from their folders."""

from pathlib import Path
from typing import Any

from rich.table import Table

from grouped_lm.display import peak_memory_gib
from grouped_lm.errors import RunFolderError
from grouped_lm.run_folder import RunFolder

COLUMNS = (
    ("head", "head", "{}"),
    ("group size", "group_size", "{:,}"),
    ("model", "model", "{}"),
    ("seed", "seed", "{}"),
    ("state", "state", "{}"),
    ("step", "trainer/step", "{:,}"),
    ("perplexity", "val/perplexity", "{:,.2f}"),
    ("bits/byte", "val/bits_per_byte", "{:.3f}"),
    ("group acc.", "val/group_accuracy", "{:.1%}"),
    ("tokens/s", "throughput/tokens_per_sec", "{:,.0f}"),
    ("peak GiB", "memory/peak", "{:.3f}"),
    ("parameters", "params/total", "{:,}"),
)


def find_runs(folders: list[Path]) -> list[Path]:
    """Return the run folders among and below `folders`, in order of their names.

    Raises:
        RunFolderError: a folder that does not exist, or no run anywhere.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is not a folder: name run folders, or a folder of them")
        found += sorted(path.parent for path in folder.rglob("config.json"))
    if not found:
        raise RunFolderError(f"no run in {', '.join(map(str, folders))}: `gvc train` makes one")
    return found


def collect_runs(folders: list[Path]) -> list[dict[str, Any]]:
    """Return a row per run: its folder, state, labels and final figures."""
    rows = []
    for path in find_runs(folders):
        folder = RunFolder(path)
        config = folder.read_config()
        labels = {
            "model": config.model.name,
            "head": config.head.name,
            "seed": config.seed,
            "state": "unfinished",
        }
        row = {"run": str(path)} | labels | (folder.read_result() or {})
        rows.append(row | {"memory/peak": peak_memory_gib(row)})
    return rows


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """Return runs as lines; columns that no run fills are left out, and so is the run folder where it says nothing."""
    table = Table(title_justify="left")
    columns = [c for c in COLUMNS if any(row.get(c[1]) is not None for row in rows)]
    table.add_column("run", overflow="fold")
    for label, _, form in columns:
        table.add_column(label, justify="left" if form == "{}" else "right")
    for row in rows:
        cells = [form.format(row[key]) if row.get(key) is not None else "-" for _, key, form in columns]
        table.add_row(row["run"], *cells)
    return table
