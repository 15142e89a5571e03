"""Figures of a sweep: quality, memory and speed by group size, and against each other."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from grouped_lm.plan.theory import best_group_size, estimate_grouped_head_bytes
from grouped_lm.report.series import Point, collect_points, describe, front_of, head_tokens
from grouped_lm.report.style import (
    BAND,
    GREY,
    OTHER_STYLE,
    Draw,
    Line,
    draw_lines,
    finish,
    halo,
    label_points,
    save_figure,
    set_powers_of_two,
    set_scale,
    styles_by_head,
)
from grouped_lm.runs.query import MEMORY, QUALITY, SPEED, Row
from grouped_lm.system.tables import GIB

PERPLEXITY, HEAD_MEMORY = "val/perplexity", "memory/peak_head_gib"
AXES = {
    PERPLEXITY: "validation perplexity",
    HEAD_MEMORY: "peak memory of the head (GiB)",
    MEMORY[0]: "peak memory of a training step (GiB)",
    SPEED[0]: "tokens per second",
    QUALITY[0]: "validation loss (nats per token)",
}
BY_SIZE = {PERPLEXITY: "Validation perplexity", HEAD_MEMORY: "Peak memory of the head", SPEED[0]: "Training speed"}
FILES = {PERPLEXITY: "perplexity", HEAD_MEMORY: "head-memory", SPEED[0]: "speed"}
"""Figures that are drawn by group size: their titles, and the beginnings of their files."""
NOISE = 1.1
"""Speeds or memories within this factor are drawn on an axis from zero, so that noise does not look like a result."""


def write_plots(rows: list[Row], folder: Path) -> list[Path]:
    """Write every plot for which the complete runs have points, and return the files.

    Args:
        rows: as `collect_runs` returns them.
        folder: is made if there is a plot.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    points, plots = collect_points(rows), dict[str, Draw]()
    sized = [point for point in points if point.group_size is not None]
    for key, name in FILES.items() if len({point.group_size for point in sized}) > 1 else ():
        if any(point.mean(key) is not None for point in sized):
            plots[f"{name}-by-group-size"] = partial(draw_by_group_size, points=points, key=key)
    for name, against in (("pareto-loss-speed", SPEED), ("pareto-loss-memory", MEMORY)):
        known = [p for p in points if p.mean(against[0]) is not None and p.mean(QUALITY[0]) is not None]
        if len(known) > 1:
            plots[name] = partial(draw_pareto, points=known, against=against)
    return [path for name, draw in plots.items() for path in save_figure(folder / name, draw)]


def draw_by_group_size(axes: Any, points: list[Point], key: str) -> None:
    """Draw one figure against group size: a line per series, heads without groups as a level."""
    shown = [point for point in points if point.mean(key) is not None]
    sized = [point for point in shown if point.group_size is not None]
    sizes = sorted({point.group_size for point in sized if point.group_size is not None})
    styles, lines = styles_by_head([point.series for point in shown]), []
    for series, style in styles.items():
        own = [point for point in shown if point.series == series]
        ys = [point.mean(key) or 0.0 for point in own]
        if own[0].group_size is None:
            axes.axhline(ys[0], color=style.color, linestyle=style.linestyle, linewidth=1.4)
            axes.axhspan(min(own[0].values(key)), max(own[0].values(key)), color=style.color, alpha=0.12, linewidth=0)
            lines.append(Line(series, [], ys, style))
        else:
            lines.append(Line(series, [point.group_size or 0 for point in own], ys, style, _errors(own, key)))
    draw_lines(axes, [line for line in lines if line.xs])
    set_powers_of_two(axes, sizes)
    set_scale(axes.yaxis, [y for point in shown for y in point.values(key)], from_zero=key != PERPLEXITY)
    axes.set_xlabel("group size S (slots per group)")
    axes.set_ylabel(AXES[key])
    axes.margins(y=0.16)  # space for "√V" above the marks and for the note below the smallest value
    if key == HEAD_MEMORY:
        lines += _draw_theory(axes, sized, sizes)
    _mark_root(axes, sized)
    finish(axes, f"{BY_SIZE[key]} by group size", describe(shown), lines)


def _errors(points: list[Point], key: str) -> list[list[float]] | None:
    """Return the range of the seeds below and above the means; None if every point has one seed."""
    spreads = [point.spread(key) for point in points]
    return [[low for low, _ in spreads], [high for _, high in spreads]] if any(map(any, spreads)) else None


def _draw_theory(axes: Any, sized: list[Point], sizes: list[int]) -> list[Line]:
    """Draw the estimated memory of the grouped head, mark its smallest value, and return the curves."""
    rows = [row for point in sized if point.head == "grouped" for row in point.rows]
    cases = {(head_tokens(row), row.get("model.n_embd"), row.get("vocab_size")) for row in rows}
    lines = []
    for case in sorted(case for case in cases if all(case)):
        best = best_group_size(*case)  # type: ignore[arg-type]
        low, high = min(sizes[0], best), max(sizes[-1], best)
        xs = sorted({round(low * (high / low) ** (i / 200)) for i in range(201)})
        ys = [estimate_grouped_head_bytes(*case, size) / GIB for size in xs]  # type: ignore[arg-type]
        least = estimate_grouped_head_bytes(*case, best) / GIB  # type: ignore[arg-type]
        axes.plot(xs, ys, color=BAND, linewidth=5, zorder=1.5)  # a band behind the measured points
        axes.plot([best], [least], marker="*", markersize=14, color=GREY, markeredgecolor="white", zorder=4)
        spot = {"textcoords": "offset points", "ha": "left", "color": GREY, "path_effects": halo()}
        axes.annotate(f"theory's least, S = {best:,}", (best, least), (6, -19), **spot)
        lines.append(Line("theory" if len(cases) == 1 else f"theory, N {case[0]:,}", xs, ys, OTHER_STYLE))
    return lines


def _mark_root(axes: Any, sized: list[Point]) -> None:
    """Draw a vertical line at sqrt V, if all runs have one vocabulary."""
    vocab_sizes = {row.get("vocab_size") for point in sized for row in point.rows}
    if len(vocab_sizes) == 1 and (vocab_size := vocab_sizes.pop()):
        root = math.sqrt(vocab_size)
        axes.axvline(root, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
        spot = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        axes.annotate(f"√V = {root:.0f}", (root, 1), (4, -2), color=GREY, **spot)


def draw_pareto(axes: Any, points: list[Point], against: tuple[str, int]) -> None:
    """Draw loss against speed or memory. Marks of the Pareto front are filled, and a line joins them.

    Args:
        axes: of a figure.
        points: one or more that have both figures.
        against: `SPEED` or `MEMORY`.
    """
    key, quality = against[0], QUALITY[0]
    fronts = front_of(points, (QUALITY, against))
    where = "pre" if against == SPEED else "post"  # a slower or larger step is possible at the same loss
    for front in fronts:
        corners = sorted((point.mean(key) or 0.0, point.mean(quality) or 0.0) for point in front)
        axes.step(*zip(*corners, strict=True), where=where, color="#bbbbbb", zorder=1)
    on_front = [point for front in fronts for point in front]
    styles, names = styles_by_head([point.series for point in points]), []
    for point in [*on_front, *(point for point in points if point not in on_front)]:
        style = styles[point.series]
        x, y = point.mean(key) or 0.0, point.mean(quality) or 0.0
        fill = style.color if point in on_front else "white"
        errors = {"xerr": _errors([point], key), "yerr": _errors([point], quality), "elinewidth": 0.9, "capsize": 2}
        look = {"color": style.color, "marker": style.marker, "markerfacecolor": fill, "markersize": 7}
        axes.errorbar([x], [y], linestyle="none", **errors, **look)
        names.append((x, y, point.label(alone=len(styles) == 1), style.color))
    axes.margins(0.12)
    values = [value for point in points for value in point.values(key)]
    set_scale(axes.xaxis, values, from_zero=max(values) < NOISE * min(values))
    axes.set_xlabel(AXES[key])
    axes.set_ylabel(AXES[quality])
    what, side = ("speed", "right") if against == SPEED else ("memory", "left")
    finish(axes, f"Loss against {what}: best is down {side}; front filled", describe(points))
    label_points(axes, names)
