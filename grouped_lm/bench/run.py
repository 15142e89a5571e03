"""Run one suite: settings in; rows, CSV, plots and a table out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grouped_lm.bench.checks import refuse_inexact
from grouped_lm.bench.decode import decode_cells
from grouped_lm.bench.heads import Cell, heads_cells
from grouped_lm.bench.memory import memory_cells
from grouped_lm.bench.plots import PlotLibraryError, write_bench_plots
from grouped_lm.bench.results import Row, environment_columns, run_cells, to_csv
from grouped_lm.bench.settings import BenchConfig
from grouped_lm.bench.steps import steps_cells
from grouped_lm.bench.tables import suite_tables
from grouped_lm.bench.vocab import vocab_cells
from grouped_lm.bench.workload import Workload, say
from grouped_lm.config import ModelConfig
from grouped_lm.system.console import print_table
from grouped_lm.system.files import write_text
from grouped_lm.system.runtime import keep_freed_memory, set_threads

SUITE_CELLS: dict[str, Callable[[Workload], list[Cell]]] = {
    "heads": heads_cells,
    "steps": steps_cells,
    "memory": memory_cells,
    "decode": decode_cells,
    "vocab": vocab_cells,
}


TOGETHER = ("heads", "steps", "decode")
"""Suites that measure all implementations in one cell. Another selection measures the cell again."""


def suite_cells(suite: str, work: Workload) -> list[Cell]:
    """Return the cells of a suite, each a set of rows that are measured together."""
    return SUITE_CELLS[suite](work)


def run_suite(
    suite: str,
    settings: BenchConfig,
    models: dict[str, ModelConfig],
    folder: Path,
    command: str,
    out: Path | None = None,
    suffix: str = "",
) -> list[Row]:
    """Measure the cells that `folder` does not have yet, write CSV and plots, and return the rows.

    Args:
        suite: One of `settings.SUITES`.
        settings: The bench's config.
        models: Preset of conf/model -> body.
        folder: The folder of the cells.
        command: The command line, for every row.
        out: A second folder for bench-SUITE.csv and its plots.
        suffix: The end of their names, so that the quick grid does not overwrite the full one's files.

    Raises:
        InexactError: One of our heads is not exact. All files are written before.
    """
    set_threads(settings.threads)
    keep_freed_memory()
    work = Workload(settings, models)
    rows = run_cells(
        folder, suite_cells(suite, work), suite, identity(suite, work), environment_columns(command, work.place)
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / f"bench-{suite}{suffix}.csv", to_csv(rows))
    try:
        write_bench_plots(suite, rows, folder)
        if out is not None:
            write_bench_plots(suite, rows, out, suffix)
    except PlotLibraryError as error:
        say(f"gvc: {error}")
    refuse_inexact(rows, {c.name for c in work.implementations if c.head_class is None})
    return rows


def identity(suite: str, work: Workload) -> dict[str, Any]:
    """Return all settings that change a cell's figures, except the grid: a cell is one point of it."""
    settings = dataclasses.asdict(work.settings)
    data = {key: value for key, value in settings["data"].items() if key not in ("name", "cache_dir")}
    own = settings[suite] if suite in ("decode", "memory", "vocab") else {}
    lists = {key: value for key, value in own.items() if isinstance(value, list) and key != "excess_lr"}
    elsewhere = {key: settings[key] for key in ("device", "dtype", "repeats")}
    if elsewhere == {"device": "cpu", "dtype": "float32", "repeats": 1}:
        elsewhere = {}  # as cells without these keys
    return elsewhere | {
        "data": data,
        "tokenizer": settings["tokenizer"],
        "threads": settings["threads"],
        "seed": settings["seed"],
        "competitors": [c.name for c in work.implementations] if suite in TOGETHER else [],
        "meter": settings["meter"],
        "suite": {key: value for key, value in own.items() if key not in lists},
    }


def show(suite: str, rows: list[Row]) -> None:
    """Print the suite's tables on stdout."""
    for table in suite_tables(suite, rows):
        print_table(table.terminal())
