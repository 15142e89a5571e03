"""Pictures of a sweep, SVG and PNG, the same bytes for the same rows. matplotlib is loaded when one is drawn."""

import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from grouped_lm.plan.theory import best_group_size, estimate_grouped_head_bytes
from grouped_lm.report.series import Point, collect_points, describe, front_of, head_tokens
from grouped_lm.report.style import (
    GREY,
    Label,
    PlotLibraryError,
    halo,
    label_ends,
    label_points,
    name_sizes,
    set_scale,
    style_of,
    styled_matplotlib,
    write_title,
)
from grouped_lm.runs.query import MEMORY, QUALITY, SPEED, Row

__all__ = ["PlotLibraryError", "write_plots"]

GIB = 2**30
SIZE = (6.4, 4.2)
SVG_METADATA = {"Date": None, "Creator": None}
PERPLEXITY, HEAD_MEMORY = "val/perplexity", "memory/peak_head_gib"
AXES = {
    PERPLEXITY: "validation perplexity",
    HEAD_MEMORY: "peak memory of the head (GiB)",
    "memory/peak": "peak memory of a training step (GiB)",
    "throughput/tokens_per_sec": "tokens per second",
    "val/loss": "validation loss (nats per token)",
}
TITLES = {PERPLEXITY: "Validation perplexity", HEAD_MEMORY: "Peak memory of the head", SPEED[0]: "Training speed"}


def write_plots(rows: list[Row], folder: Path) -> list[Path]:
    """Write every plot that the complete runs give points for, and return the files.

    Args:
        rows: as `collect_runs` returns them.
        folder: made if there is anything to write.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    points = collect_points(rows)
    sized = [point for point in points if point.group_size is not None]
    jobs: list[tuple[str, Callable[[Any], None]]] = []
    if len({point.group_size for point in sized}) > 1:
        for name, key in (
            ("perplexity-by-group-size", PERPLEXITY),
            ("head-memory-by-group-size", HEAD_MEMORY),
            ("speed-by-group-size", SPEED[0]),
        ):
            if any(point.mean(key) is not None for point in sized):
                jobs.append((name, partial(draw_by_group_size, points=points, key=key)))
    for name, against in (("pareto-loss-speed", SPEED), ("pareto-loss-memory", MEMORY)):
        known = [p for p in points if p.mean(against[0]) is not None and p.mean(QUALITY[0]) is not None]
        if len(known) > 1:
            jobs.append((name, partial(draw_pareto, points=known, against=against)))
    return [path for name, draw in jobs for path in save_figure(folder / name, draw)]


def save_figure(stem: Path, draw: Callable[[Any], None], size: tuple[float, float] = SIZE) -> list[Path]:
    """Draw once, in inches, and write both files whole; no dates and no versions inside."""
    with styled_matplotlib():
        figure = make_figure(draw, size)
        stem.parent.mkdir(parents=True, exist_ok=True)
        written = []
        for suffix, metadata in ((".svg", SVG_METADATA), (".png", {"Software": None})):
            path = stem.with_suffix(suffix)
            temporary = path.with_name(f".{path.name}.tmp")
            figure.savefig(temporary, format=suffix[1:], dpi=160, metadata=metadata)
            temporary.replace(path)
            written.append(path)
    return written


def render_svg(draw: Callable[[Any], None], size: tuple[float, float] = SIZE) -> str:
    """Draw once and return the SVG, the same text for the same picture.

    Args:
        draw: given axes.
        size: width and height, inches.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    with styled_matplotlib():
        text = io.StringIO()
        make_figure(draw, size).savefig(text, format="svg", metadata=SVG_METADATA)
    return text.getvalue()


def make_figure(draw: Callable[[Any], None], size: tuple[float, float] = SIZE) -> Any:
    """Return a figure with one pair of axes, drawn; within `styled_matplotlib`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    return figure


def draw_by_group_size(axes: Any, points: list[Point], key: str) -> None:
    """Draw one figure against group size: a line per series, heads without groups as a level."""
    shown = [point for point in points if point.mean(key) is not None]
    sized = [point for point in shown if point.group_size is not None]
    sizes = sorted({point.group_size for point in sized if point.group_size is not None})
    labels = []
    for series in dict.fromkeys(point.series for point in shown):
        color, marker, dashes = style_of(series, shown)
        line = [point for point in shown if point.series == series]
        ys = [point.mean(key) or 0.0 for point in line]
        if line[0].group_size is None:
            axes.axhline(ys[0], color=color, linestyle=dashes, linewidth=1.4)
            axes.axhspan(min(line[0].values(key)), max(line[0].values(key)), color=color, alpha=0.12, linewidth=0)
        else:
            style = {"color": color, "marker": marker, "linestyle": dashes, "markersize": 6, "linewidth": 1.8}
            axes.errorbar([point.group_size for point in line], ys, yerr=_errors(line, key), capsize=3, **style)
        labels.append(Label(ys[-1], series, color))
    name_sizes(axes, sizes)
    set_scale(axes.yaxis, [y for point in shown for y in point.values(key)], from_zero=key != PERPLEXITY)
    axes.set_xlabel("group size S (slots per group)")
    axes.set_ylabel(AXES[key])
    axes.margins(y=0.16)  # room for the name of sqrt V above the marks, and for a note under the least
    if key == HEAD_MEMORY:
        labels += _draw_theory(axes, sized, sizes)
    _mark_root(axes, sized)
    write_title(axes, f"{TITLES[key]} by group size", describe(shown))
    label_ends(axes, labels)


def _errors(line: list[Point], key: str) -> list[list[float]] | None:
    """Return the range of the seeds below and above the means, None where there is one seed everywhere."""
    spreads = [point.spread(key) for point in line]
    return [[low for low, _ in spreads], [high for _, high in spreads]] if any(map(any, spreads)) else None


def _draw_theory(axes: Any, sized: list[Point], sizes: list[int]) -> list[Label]:
    """Draw what the grouped head should need, mark the least of it, and return the curves' names."""
    labels = []
    cases = {
        (head_tokens(row), row.get("model.n_embd"), row.get("vocab_size"))
        for point in sized
        if point.head == "grouped"
        for row in point.rows
    }
    for n_tokens, n_embd, vocab_size in sorted(case for case in cases if all(case)):
        sizes_here = (n_tokens, n_embd, vocab_size)
        best = best_group_size(*sizes_here)  # type: ignore[arg-type]
        low, high = min(sizes[0], best), max(sizes[-1], best)
        curve = sorted({round(low * (high / low) ** (i / 200)) for i in range(201)})
        gib = [estimate_grouped_head_bytes(*sizes_here, size) / GIB for size in curve]  # type: ignore[arg-type]
        least = estimate_grouped_head_bytes(*sizes_here, best) / GIB  # type: ignore[arg-type]
        axes.plot(curve, gib, color="#c4c4c4", linewidth=5, zorder=1.5)  # a band, seen behind what was measured
        axes.plot([best], [least], marker="*", markersize=14, color=GREY, markeredgecolor="white", zorder=4)
        spot = {"textcoords": "offset points", "ha": "left", "color": GREY, "path_effects": halo()}
        axes.annotate(f"theory's least, S = {best:,}", (best, least), (6, -19), **spot)  # away from the axis of y
        labels.append(Label(gib[-1], "theory" if len(cases) == 1 else f"theory, N {n_tokens:,}", GREY))
    return labels


def _mark_root(axes: Any, sized: list[Point]) -> None:
    """Draw a line at sqrt V."""
    vocabs = {row.get("vocab_size") for point in sized for row in point.rows}
    vocab_size = vocabs.pop() if len(vocabs) == 1 else None
    if vocab_size:
        root = math.sqrt(vocab_size)
        axes.axvline(root, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
        spot = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        axes.annotate(f"√V = {root:.0f}", (root, 1), (4, -2), color=GREY, **spot)


def draw_pareto(
    axes: Any, points: list[Point], against: tuple[str, int], styles: dict[str, tuple[Any, ...]] | None = None
) -> None:
    """Draw loss against speed or memory; marks on the front are filled, and a line joins them.

    Args:
        axes: of a figure.
        points: one or more with both figures.
        against: `SPEED` or `MEMORY`.
        styles: colour, mark and dashes by series; None: by the order of the series.
    """
    key, quality = against[0], QUALITY[0]
    fronts = front_of(points, (QUALITY, against))
    for front in fronts:
        corners = sorted((point.mean(key) or 0.0, point.mean(quality) or 0.0) for point in front)
        where = "pre" if against == SPEED else "post"  # what is slower, or takes more, can be had at the same loss
        axes.step(*zip(*corners, strict=True), where=where, color="#bbbbbb", zorder=1)
    on_front = [point for front in fronts for point in front]
    spots = []
    for point in [*on_front, *(p for p in points if p not in on_front)]:
        color, marker, _ = styles[point.series] if styles else style_of(point.series, points)
        x, y = point.mean(key) or 0.0, point.mean(quality) or 0.0
        style = {"color": color, "marker": marker, "markerfacecolor": color if point in on_front else "white"}
        errors = {"xerr": _errors([point], key), "yerr": _errors([point], quality)}
        axes.errorbar([x], [y], **errors, capsize=2, markersize=7, elinewidth=0.9, linestyle="none", **style)
        spots.append((x, y, point.label(alone=len({p.series for p in points}) == 1), color))
    axes.margins(0.12)
    set_scale(axes.xaxis, [value for point in points for value in point.values(key)])
    axes.set_xlabel(AXES[key])
    axes.set_ylabel(AXES[quality])
    what, side = ("speed", "right") if against == SPEED else ("memory", "left")
    write_title(axes, f"Loss against {what}: best is down {side}; front filled", describe(points))
    label_points(axes, spots)
