"""Runs side by side: on a terminal, and as the files that a sweep ends in."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.table import Table

from grouped_lm.errors import RunFolderError
from grouped_lm.report.figures import PlotLibraryError, write_plots
from grouped_lm.report.markdown import escape, markdown_table
from grouped_lm.runs.folder import COMPLETE
from grouped_lm.runs.query import COLUMNS, Row, mark_front
from grouped_lm.runs.table import collect_runs
from grouped_lm.system.files import write_text

CSV_FIRST = (
    *("run", "sweep", "state", "reason", "front", "model", "head", "head_options", "group_size", "n_group", "grouping"),
    *("data", "tokenizer", "vocab_size", "seed", "trainer/step", "trainer/tokens", "val/loss", "val/perplexity"),
    *("val/bits_per_byte", "throughput/tokens_per_sec", "throughput/vs_dense", "memory/peak", "memory/vs_dense"),
    *("memory/peak_head_gib", "params/total", "params/head"),
)
"""Columns of every CSV, in this order, filled or not; other figures follow in the order of their names."""
LABELS = ("head", "group_size", "model", "seed", "state", "trainer/step")
"""Columns that say what a run is rather than what it reached."""
PARETO_SHOWN = (
    *("head", "group_size", "model", "seed", "val/perplexity"),
    *("throughput/tokens_per_sec", "memory/peak", "memory/peak_head_gib"),
)
FEW_RUNS = 4
"""Up to here runs stand side by side as columns, which a narrow terminal can show; more of them are lines."""
PARETO_TEXT = (
    "No run on the same text is at least as good as these in loss, tokens per second and peak memory and better in one "
    "of them. Only complete runs take part; of equal runs all are shown."
)

Column = tuple[str, str, str]


def write_results(folder: Path) -> list[Row]:
    """Write `results.csv`, `results.md` and `plots/` of the runs below `folder`, and return the rows.

    Without matplotlib the plots are left out, and that is said; where no job got so far, no result is. Two
    drivers of one sweep write one after the other.
    """
    if not folder.is_dir():
        return []
    with FileLock(folder / ".results.lock"):
        try:
            rows = collect_runs([folder])
        except RunFolderError:
            return []
        plots: list[Path] = []
        try:
            plots = write_plots(rows, folder / "plots")
        except PlotLibraryError as error:
            print(f"gvc: {error}", file=sys.stderr)
        write_tables(rows, folder, plots)
        return rows


def write_tables(rows: list[Row], folder: Path, plots: list[Path] | None = None) -> None:
    """Write `results.csv` (every figure, full precision) and `results.md` (to be read), each whole or not at all.

    Args:
        rows: runs; those below `folder` are named from there, so that two sweeps' tables can be compared.
        folder: where the files go.
        plots: pictures that results.md shows; the PNGs of them.
    """
    rows = [row | {"run": _name_below(row["run"], folder)} for row in rows]
    mark_front(rows)
    write_text(folder / "results.csv", to_csv(rows))
    pictures = [path.relative_to(folder) for path in plots or [] if path.suffix == ".png"]
    write_text(folder / "results.md", _markdown(rows, folder.resolve().name, pictures))


def _name_below(run: str, folder: Path) -> str:
    path, top = Path(run).resolve(), folder.resolve()
    return str(path.relative_to(top)) if path.is_relative_to(top) and path != top else run


def to_csv(rows: list[Row]) -> str:
    """Return rows as CSV: the columns of `CSV_FIRST`, then the others; floats so that they read back the same."""
    others = {key for row in rows for key in row} - set(CSV_FIRST)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*CSV_FIRST, *sorted(others)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
    return text.getvalue()


def _markdown(rows: list[Row], title: str, pictures: list[Path]) -> str:
    complete = [row for row in rows if row["state"] == COMPLETE]
    text = f"# {title}\n\n{len(complete)} of {len(rows)} runs complete.\n"
    front = [row for row in complete if row["front"] == "yes"]
    if front:
        shown = [c for c in _filled(front) if c[1] in PARETO_SHOWN]
        text += f"\n## Pareto front\n\n{PARETO_TEXT}\n\n{_markdown_table(front, shown)}"
    if complete:
        text += f"\n## Complete runs\n\n{_markdown_table(complete, _filled(complete))}"
    others = [row for row in rows if row["state"] != COMPLETE]
    if others:
        text += "\n## Other runs\n\n" + "".join(f"- {escape(row['run'])}: {_why(row)}\n" for row in others)
    if pictures:
        text += "\n## Plots\n\n" + "\n".join(f"![{path.stem.replace('-', ' ')}]({path})\n" for path in pictures)
    return text


def _why(row: Row) -> str:
    reached = f"at step {row['trainer/step']:,}" if row.get("trainer/step") is not None else "before its first figures"
    reason = f": {escape(row['reason'])}" if row.get("reason") else ""
    return f"{row['state']} {reached}{reason}"


def _markdown_table(rows: list[Row], columns: list[Column]) -> str:
    shown: list[Column] = [("run", "run", "{}"), *columns]
    return markdown_table(shown, [[cell(row.get(key), form) for _, key, form in shown] for row in rows])


def _filled(rows: list[Row]) -> list[Column]:
    """Return the columns that some run fills; training perplexity only where it stands in for a validation."""
    lack = any(row.get("val/perplexity") is None for row in rows)
    return [c for c in COLUMNS if any(r.get(c[1]) is not None for r in rows) and (lack or c[1] != "train/perplexity")]


def cell(value: Any, form: str) -> str:
    """Return a figure as a table shows it, "-" where there is none."""
    return form.format(value) if value is not None else "-"


def comparison_table(rows: list[Row]) -> Table:
    """Return runs side by side; what is the same in all of them stands in the title, what none has nowhere."""
    filled = _filled(rows)
    same = [c for c in filled if c[1] in LABELS and len(rows) > 1 and len({row.get(c[1]) for row in rows}) == 1]
    columns = [c for c in filled if c not in same]
    paths = [Path(row["run"]) for row in rows]
    if len({path.is_absolute() for path in paths}) > 1:
        paths = [path.absolute() for path in paths]  # there is no common folder otherwise
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    names = [str(path.relative_to(parent)) for path in paths]
    title = ", ".join([str(parent), *(f"{label} {cell(rows[0][key], form)}" for label, key, form in same)])
    table = Table(title=title, title_justify="left", caption=_reasons(rows, names), caption_justify="left")
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


def _reasons(rows: list[Row], names: list[str]) -> str | None:
    lines = [f"{name}: {row['reason']}" for name, row in zip(names, rows, strict=True) if row.get("reason")]
    return "\n".join(lines).replace("[", "\\[") or None
