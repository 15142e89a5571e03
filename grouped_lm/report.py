"""Runs side by side, read from their folders."""

import csv
import difflib
import io
import os
import re
from pathlib import Path
from typing import Any

from rich.table import Table

from grouped_lm.display import peak_memory_gib
from grouped_lm.errors import ConfigError, RunFolderError
from grouped_lm.run_folder import RunFolder
from grouped_lm.runtime import write_text

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
    ("speed, x dense", "throughput/vs_dense", "{:.1f}"),
    ("peak GiB", "memory/peak", "{:.3f}"),
    ("memory, x dense", "memory/vs_dense", "{:.2f}"),
    ("head GiB", "memory/peak_head_gib", "{:.4f}"),
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
        inside = (path.parent for path in folder.rglob("config.json"))
        found += sorted(path for path in inside if not any(p.startswith(".") for p in path.relative_to(folder).parts))
    if not found:
        raise RunFolderError(f"no run in {', '.join(map(str, folders))}: `gvc train` makes one")
    return found


def collect_runs(folders: list[Path]) -> list[dict[str, Any]]:
    """Return a row per run: its folder, state, labels and final figures."""
    rows: list[dict[str, Any]] = []
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
    add_ratios(rows)
    return rows


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add speed and memory over those of the first dense run of the same body, text and budget, where there is one."""
    alike = ("model", "data", "tokenizer", "trainer/tokens")
    for row in rows:
        dense = [r for r in rows if r["head"] == "dense" and all(r.get(key) == row.get(key) for key in alike)]
        for ratio, key in (("throughput/vs_dense", "throughput/tokens_per_sec"), ("memory/vs_dense", "memory/peak")):
            if dense and dense[0].get(key) and row.get(key):
                row[ratio] = row[key] / dense[0][key]


def write_results(folder: Path) -> list[dict[str, Any]]:
    """Write `results.csv` (full precision) and `results.md` of the runs below `folder`, and return the rows."""
    try:
        rows = collect_runs([folder])
    except RunFolderError:
        return []  # no job got so far
    for row in rows:
        row["run"] = str(Path(row["run"]).relative_to(folder))
    write_text(folder / "results.csv", to_csv(rows))
    columns = [c for c in (("run", "run", "{}"), *COLUMNS) if any(row.get(c[1]) is not None for row in rows)]
    lines = [[label for label, _, _ in columns], ["---"] * len(columns)]
    lines += [[cell(row.get(key), form) for _, key, form in columns] for row in rows]
    failed = [f"- {row['run']}: {row['reason']}" for row in rows if row.get("reason")]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(folder / "results.md", text + ("\nFailed:\n" + "\n".join(failed) + "\n" if failed else ""))
    return rows


def find_column(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the key that a person means by a column's name: `perplexity`, `val/perplexity`, `seed`, ...

    Raises:
        ConfigError: no run has such a column.
    """
    names = {key: key for row in rows for key in row} | {label: key for label, key, _ in COLUMNS}
    names = {key.rsplit("/", 1)[-1]: key for key in reversed(names.values())} | names
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    raise ConfigError(f"no column {name}" + (f"; did you mean {near[0]}?" if near else ""))


def select_rows(rows: list[dict[str, Any]], conditions: list[str]) -> list[dict[str, Any]]:
    """Return the rows that meet every condition: `head=grouped`, `seed!=0`, `perplexity<70`, `tokens/s>1000`.

    Raises:
        ConfigError: a condition that cannot be read, or a column that no run has.
    """
    for condition in conditions:
        parts = re.fullmatch(r"\s*(.+?)\s*(!=|<|>|=)\s*(.*?)\s*", condition)
        if parts is None:
            raise ConfigError(f"cannot read --where {condition!r}: write column=value, column<number or column>number")
        name, sign, value = parts.groups()
        key = find_column(name, rows)
        rows = [row for row in rows if meets(row.get(key), sign, value)]
    return rows


def meets(found: Any, sign: str, value: str) -> bool:
    """Return whether `found` stands to `value` as `sign` says; numbers are compared as numbers."""
    if sign in ("=", "!="):
        same = str(found) == value or (isinstance(found, int | float) and number(value) == found)
        return same == (sign == "=")
    limit = number(value)
    if limit is None:
        raise ConfigError(f"{value!r} is not a number")
    return isinstance(found, int | float) and (found < limit if sign == "<" else found > limit)


def number(text: str) -> float | None:
    """Return the number that `text` is, None where it is none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def sort_rows(rows: list[dict[str, Any]], name: str, reverse: bool = False) -> list[dict[str, Any]]:
    """Return the rows in the order of a column; those without a figure come last either way.

    Raises:
        ConfigError: no run has such a column.
    """
    key = find_column(name, rows)
    known = [row for row in rows if row.get(key) is not None]
    return sorted(known, key=lambda row: row[key], reverse=reverse) + [row for row in rows if row.get(key) is None]


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Return every figure of every run in full precision."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def cell(value: Any, form: str) -> str:
    """Return a figure as a table shows it, "-" where there is none."""
    return form.format(value) if value is not None else "-"


FEW_RUNS = 4
"""Up to here runs stand side by side as columns, which a narrow terminal can show; more of them are lines."""


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """Return runs side by side; what is the same in all of them stands in the title, what none has nowhere."""
    filled = [c for c in COLUMNS if any(row.get(c[1]) is not None for row in rows)]
    same = [c for c in filled if form_is_label(c) and len(rows) > 1 and len({row.get(c[1]) for row in rows}) == 1]
    columns = [c for c in filled if c not in same]
    paths = [Path(row["run"]) for row in rows]
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    names = [str(path.relative_to(parent)) for path in paths]
    title = ", ".join([str(parent), *(f"{label} {cell(rows[0][key], form)}" for label, key, form in same)])
    table = Table(title=title, title_justify="left")
    if len(rows) <= FEW_RUNS:
        table.add_column("")
        for name in names:
            table.add_column(name, justify="right", overflow="fold")
        for label, key, form in columns:
            table.add_row(label, *(cell(row.get(key), form) for row in rows))
        return table
    table.add_column("run", overflow="fold")
    for label, _, form in columns:
        table.add_column(label, justify="left" if form == "{}" else "right")
    for name, row in zip(names, rows, strict=True):
        table.add_row(name, *(cell(row.get(key), form) for _, key, form in columns))
    return table


def form_is_label(column: tuple[str, str, str]) -> bool:
    """Return whether a column says what a run is rather than what it reached."""
    return column[1] in ("head", "group_size", "model", "seed", "state", "trainer/step")
