"""Run one suite: settings in; rows, CSV, plots and a table out."""

import dataclasses
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from grouped_lm.bench.checks import refuse_inexact
from grouped_lm.bench.decode import decode_cells
from grouped_lm.bench.heads import heads_cells
from grouped_lm.bench.memory import memory_cells
from grouped_lm.bench.plots import write_bench_plots
from grouped_lm.bench.results import Cell, environment_columns, run_cells, to_csv
from grouped_lm.bench.settings import BenchConfig
from grouped_lm.bench.steps import steps_cells
from grouped_lm.bench.vocab import vocab_cells
from grouped_lm.bench.workload import Workload, say
from grouped_lm.config import ModelConfig
from grouped_lm.report.style import PlotLibraryError
from grouped_lm.system.console import print_table
from grouped_lm.system.files import write_text
from grouped_lm.system.runtime import keep_freed_memory, set_threads
from grouped_lm.system.tables import Row, Table, columns, group_rows

SUITE_CELLS: dict[str, Callable[[Workload], list[Cell]]] = {
    "heads": heads_cells,
    "steps": steps_cells,
    "memory": memory_cells,
    "decode": decode_cells,
    "vocab": vocab_cells,
}
TOGETHER = ("heads", "steps", "decode")
"""Suites that measure all implementations in one cell. Another selection measures the cell again."""
SHAPE = (
    *("device", "dtype", "part", "model", "attention", "language", "n_tokens", "n_embd", "vocab_size", "block_size"),
    "batch_size",
)
"""Rows that differ in one of these are in different tables."""


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
        models: The bodies, by preset of conf/model.
        folder: Keeps the cells.
        command: The command line, which every row gets.
        out: A second folder for bench-SUITE.csv and its plots.
        suffix: The end of their names, so that the quick grid does not overwrite the full one's files.

    Raises:
        InexactError: One of our heads is not exact. All files are written before.
    """
    set_threads(settings.threads)
    keep_freed_memory()
    work = Workload(settings, with_positions(models, settings.block_sizes(suite)))
    environment = environment_columns(command, work.place)
    cells = SUITE_CELLS[suite](work)
    rows = run_cells(folder, cells, suite, identity(suite, work), environment, settings.limit_s)
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


def with_positions(models: dict[str, ModelConfig], sizes: dict[str, int]) -> dict[str, ModelConfig]:
    """Return the bodies with positions for the longest input of each, whatever their presets say."""
    longest = {name: max(model.block_size, sizes.get(name, 0)) for name, model in models.items()}
    return {name: dataclasses.replace(model, block_size=longest[name]) for name, model in models.items()}


def identity(suite: str, work: Workload) -> dict[str, Any]:
    """Return all settings that change a cell's figures, except the lists of the grid: a cell is one point of it."""
    settings = dataclasses.asdict(work.settings)
    grid = settings[suite] if suite in ("decode", "memory", "vocab") else {}
    shared = ("device", "dtype", "repeats", "tokenizer", "threads", "seed", "meter")
    return {key: settings[key] for key in shared} | {
        "data": {key: value for key, value in settings["data"].items() if key not in ("name", "cache_dir")},
        "competitors": [c.name for c in work.implementations] if suite in TOGETHER else [],
        "suite": {key: value for key, value in grid.items() if key == "excess_lr" or not isinstance(value, list)},
    }


def show(suite: str, rows: list[Row]) -> None:
    """Print one table for each shape on stdout, with the columns of tables.yaml."""
    shown = yaml.safe_load(files("grouped_lm.bench").joinpath("tables.yaml").read_text(encoding="utf-8"))[suite]
    for shape, group in group_rows(rows, SHAPE).items():
        title = ", ".join(f"{key} {value}" for key, value in zip(SHAPE, shape, strict=True) if value is not None)
        print_table(Table(title=title, rows=group, columns=columns(shown), missing="").terminal())
