"""Tables of runs: for a terminal, and as the files that a sweep writes."""

import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path

import yaml
from rich import box
from rich.table import Table as RichTable

from grouped_lm.errors import RunFolderError
from grouped_lm.report.figures import write_plots
from grouped_lm.report.style import PlotLibraryError
from grouped_lm.runs.folder import COMPLETE
from grouped_lm.runs.query import COLUMNS, Row, mark_front
from grouped_lm.runs.table import collect_runs
from grouped_lm.system.console import natural_width
from grouped_lm.system.files import shared_lock, write_text
from grouped_lm.system.tables import Column, Table, csv_text, escape, shorten_middle, show

LISTS = yaml.safe_load(files("grouped_lm.report").joinpath("columns.yaml").read_text(encoding="utf-8"))
CSV_FIRST, NARROW, PARETO_KEYS = ([*chain(*LISTS[name])] for name in ("csv_first", "narrow", "pareto"))
RUN, TOKENIZER, BITS = Column("run", "run"), Column("tokenizer", "tokenizer"), "val/bits_per_byte"
SETTINGS = ("head", "group_size", "model", "data", "seed", "state", "trainer/step")
"""Columns that describe a run. One that is the same in all runs moves into the table's title."""
NAME_WIDTH = 16
"""Characters that the name of a run keeps in a narrow table."""
FEW_RUNS = 4
"""So many runs are shown as columns, which fit a narrow terminal. More runs are shown as lines."""
PARETO_NOTE = (
    "No other run on the same text is at least as good as these in loss, tokens per second and peak memory, and better "
    "in one of them. Only complete runs count. Equal runs are all shown."
)


def write_results(folder: Path, total: int | None = None, jobs: Sequence[Path] | None = None) -> list[Row]:
    """Write `results.csv`, `results.md` and `plots/` for the runs below `folder`, and return their rows.

    Without matplotlib there are no plots, and a line on stderr says so. Without runs there are no files. Two drivers
    of one sweep write one after the other. `total` is the number of jobs of the sweep, None if all have a folder.
    `jobs` are their folders, None if all runs there are jobs of the sweep.
    """
    if not folder.is_dir():
        return []
    with shared_lock(folder / ".results.lock"):
        try:
            rows, plots = collect_runs([folder]), list[Path]()
            plots = write_plots(rows, folder / "plots")
        except RunFolderError:
            return []
        except PlotLibraryError as error:
            print(f"gvc: {error}", file=sys.stderr)
        write_tables(rows, folder, plots, total, jobs)
        return rows


def write_tables(
    rows: list[Row],
    folder: Path,
    plots: list[Path] | None = None,
    total: int | None = None,
    jobs: Sequence[Path] | None = None,
) -> None:
    """Write `results.csv` with every figure in full precision, and `results.md` for reading.

    Args:
        rows: the runs. Those below `folder` get their name from there, so that two sweeps can be compared.
        folder: where the files go.
        plots: files of plots; results.md shows the PNGs.
        total: the number of runs in the end, None if these are all.
        jobs: the folders of the runs that are counted, None for all. results.md names the others.
    """
    counted = {row["run"] for row in rows} if jobs is None else {str(job) for job in jobs}
    own = {_name_below(run, folder) for run in counted}
    rows = [row | {"run": _name_below(row["run"], folder)} for row in rows]
    mark_front(rows)
    write_text(folder / "results.csv", runs_csv(rows))
    pictures = [path.relative_to(folder) for path in plots or [] if path.suffix == ".png"]
    complete = sum(row["state"] == COMPLETE and row["run"] in own for row in rows)
    done = f"{complete} of {total or len(own)} runs complete.\n"
    if others := [escape(row["run"]) for row in rows if row["run"] not in own]:
        done += f"\nRuns of other commands in this folder: {', '.join(others)}.\n"
    text = _results_markdown(rows, f"# {folder.resolve().name}\n\n{done}", pictures)
    write_text(folder / "results.md", text)


def _name_below(run: str, folder: Path) -> str:
    path, top = Path(run).resolve(), folder.resolve()
    return str(path.relative_to(top)) if path.is_relative_to(top) and path != top else run


def runs_csv(rows: list[Row]) -> str:
    """Return runs as CSV: the columns of `CSV_FIRST`, then the others by name."""
    return csv_text(rows, [*CSV_FIRST, *sorted({key for row in rows for key in row} - set(CSV_FIRST))])


def _results_markdown(rows: list[Row], text: str, pictures: list[Path]) -> str:
    """Return results.md: `text`, then tables of the runs, and pictures."""
    complete = [row for row in rows if row["state"] == COMPLETE]
    front = [row for row in complete if row["front"] == "yes"]
    if front:
        shown = [column for column in _filled(front) if column.key in PARETO_KEYS]
        text += f"\n## Pareto front\n\n{PARETO_NOTE}\n\n{Table(columns=[RUN, *shown], rows=front).markdown()}"
    if complete:
        text += f"\n## Complete runs\n\n{Table(columns=[RUN, *_filled(complete)], rows=complete).markdown()}"
    others = [row for row in rows if row["state"] != COMPLETE]
    text += "\n## Other runs\n\n" if others else ""
    for row in others:
        step, reason = row.get("trainer/step"), f": {escape(row['reason'])}" if row.get("reason") else ""
        reached = "before its first figures" if step is None else f"at step {step:,}"
        text += f"- {escape(row['run'])}: {row['state']} {reached}{reason}\n"
    if pictures:
        text += "\n## Plots\n\n" + "\n".join(f"![{path.stem.replace('-', ' ')}]({path})\n" for path in pictures)
    return text


def _filled(rows: list[Row]) -> list[Column]:
    """Return the columns that some run fills; training perplexity only if a run has no validation perplexity."""
    lack = any(row.get("val/perplexity") is None for row in rows)
    known = [column for column in COLUMNS if any(row.get(column.key) is not None for row in rows)]
    return [column for column in known if lack or column.key != "train/perplexity"]


def comparison_table(rows: list[Row], wide: bool = True, width: int | None = None) -> RichTable:
    """Return runs side by side. A setting that is the same in all of them is in the title.

    Args:
        rows: one or more runs. Up to `FEW_RUNS` are columns, more are lines.
        wide: show every column; else those of `NARROW`.
        width: characters of the terminal. Long names lose their middle. With `wide=False`, columns that do not fit are
            left out, the least important one first. None: no limit.
    """
    filled = _filled(rows)
    same = [c for c in filled if c.key in SETTINGS and len(rows) > 1 and len({row.get(c.key) for row in rows}) == 1]
    shown = [c for c in filled if c not in same]
    mixed = len({row.get("tokenizer") for row in rows if row.get("tokenizer")}) > 1
    if mixed:  # then perplexities do not compare, and bits per byte do
        shown.insert(min(1, len(shown)), TOKENIZER)
    names, parent = _names_of(rows)
    title = ", ".join([parent, *(f"{c.label} {show(rows[0].get(c.key), c.form)}" for c in same)])
    note = "\n".join(f"{name}: {row['reason']}" for name, row in zip(names, rows, strict=True) if row.get("reason"))
    if len(rows) <= FEW_RUNS:
        lines = [{"": c.label} | {str(i): show(row.get(c.key), c.form) for i, row in enumerate(rows)} for c in shown]
        for longest in range(max(NAME_WIDTH, *map(len, names)), NAME_WIDTH - 1, -1):
            cut = [shorten_middle(name, longest) for name in names]
            heads = [Column("", ""), *(Column(name, str(i), "{:}") for i, name in enumerate(cut))]
            table = Table(columns=heads, rows=lines, title=title, note=note).terminal()
            if wide or width is None or natural_width(table) <= width:
                return table
    rows = [row | {"run": name} for row, name in zip(rows, names, strict=True)]
    if wide:
        longest = max(NAME_WIDTH, (width or 10**6) // 3)  # columns beside it are in several tables if need be
        rows = [row | {"run": shorten_middle(row["run"], longest)} for row in rows]
        return Table(columns=[RUN, *shown], rows=rows, title=title, note=note).terminal()
    return _narrow_table(rows, [c for c in shown if c.key in NARROW and (mixed or c.key != BITS)], title, note, width)


def _narrow_table(rows: list[Row], shown: list[Column], title: str, note: str, width: int | None) -> RichTable:
    """Return as many columns as fit, in a table without vertical lines."""

    def table(columns: list[Column], name_width: int) -> RichTable:
        cut = [row | {"run": shorten_middle(row["run"], name_width)} for row in rows]
        narrow = Table(columns=[RUN, *columns], rows=cut, title=title, note=note).terminal()
        narrow.box, narrow.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        return narrow

    longest = max(len(row["run"]) for row in rows)
    if width is None:
        return table(shown, longest)
    while len(shown) > 1 and natural_width(table(shown, NAME_WIDTH)) > width:
        shown.remove(max(shown, key=lambda column: NARROW.index(column.key)))
    others = natural_width(table(shown, NAME_WIDTH)) - min(longest, NAME_WIDTH)
    return table(shown, max(NAME_WIDTH, width - others))


def _names_of(rows: list[Row]) -> tuple[list[str], str]:
    """Return the names of runs below their common folder, and that folder."""
    paths = [Path(row["run"]) for row in rows]
    if len({path.is_absolute() for path in paths}) > 1:
        paths = [path.absolute() for path in paths]  # otherwise there is no common folder
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    return [str(path.relative_to(parent)) for path in paths], str(parent)
