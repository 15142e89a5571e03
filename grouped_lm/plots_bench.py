"""Pictures of `gvc bench`: bars by competitor, with the floor or the cap as a dashed line."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grouped_lm.plot_parts import GREY, STYLES, PlotLibraryError, set_scale, write_title
from grouped_lm.plots import save_figure

__all__ = ["PlotLibraryError", "write_bench_plots"]

Row = dict[str, Any]


def write_bench_plots(suite: str, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the suite's plots as `bench-SUITE-...`, SVG and PNG, and return the files.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    return [path for name, draw in plot_jobs(suite, rows) for path in save_figure(folder / f"bench-{name}", draw)]


def plot_jobs(suite: str, rows: Sequence[Row]) -> list[tuple[str, Callable[[Any], None]]]:
    """Return file names and what draws them."""
    jobs: list[tuple[str, Callable[[Any], None]]] = []
    if suite == "heads":
        for n, d in dict.fromkeys((row["n_tokens"], row["n_embd"]) for row in rows):
            shown = [row for row in rows if (row["n_tokens"], row["n_embd"]) == (n, d)]
            jobs.append((f"heads-time-n{n}-d{d}", partial(draw_times, rows=shown, where=f"N {n:,}, D {d}")))
            jobs.append((f"heads-memory-n{n}-d{d}", partial(draw_memory, rows=shown, where=f"N {n:,}, D {d}")))
    elif suite == "steps":
        for model in dict.fromkeys(row["model"] for row in rows):
            shown = [row for row in rows if row["model"] == model]
            jobs.append((f"steps-{model}", partial(draw_rates, rows=shown, model=model)))
    return jobs


def _bars(axes: Any, names: Sequence[str], values: Sequence[float], label: str) -> None:
    places = range(len(names))
    axes.barh(places, values, color=[STYLES[1][0] if n.startswith("dense") else STYLES[0][0] for n in names])
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    set_scale(axes.xaxis, list(values), from_zero=True)
    axes.set_xlabel(label)


def draw_times(axes: Any, rows: Sequence[Row], where: str) -> None:
    """Draw medians and quartiles of forward and backward."""
    values = [row["ms"] for row in rows]
    _bars(axes, [row["head"] for row in rows], values, "ms, forward and backward; quartiles as whiskers")
    errors = [[r["ms"] - r["ms_q1"] for r in rows], [r["ms_q3"] - r["ms"] for r in rows]]
    axes.errorbar(values, range(len(rows)), xerr=errors, fmt="none", ecolor=GREY, capsize=2)
    write_title(axes, "Time of the head alone", where)


def draw_memory(axes: Any, rows: Sequence[Row], where: str) -> None:
    """Draw peaks and each head's floor; a tied table and its gradient are left out of both."""
    values = [(row["peak_bytes"] - row["tied_table_bytes"]) / 2**20 for row in rows]
    _bars(axes, [row["head"] for row in rows], values, "peak MiB, without a tied table; dashed: the floor")
    for place, row in enumerate(rows):
        floor = row["floor_bytes"] / 2**20
        axes.plot([floor, floor], [place - 0.4, place + 0.4], color="black", linestyle="--", linewidth=1.4)
    write_title(axes, "Memory of the head alone", where)


def draw_rates(axes: Any, rows: Sequence[Row], model: str) -> None:
    """Draw tokens per second of whole steps, and the step without any head."""
    heads = [row for row in rows if row["head"] != "no head"]
    cap = next(row for row in rows if row["head"] == "no head")
    label = "tokens per second; dashed: without any head"
    _bars(axes, [row["head"] for row in heads], [row["tokens_per_sec"] for row in heads], label)
    axes.axvline(cap["tokens_per_sec"], color="black", linestyle="--", linewidth=1.4)
    write_title(axes, "Whole optimizer steps", model)
