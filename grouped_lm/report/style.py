"""Parts of our plots: the look, axes with plain numbers, names beside lines and points instead of legends."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from grouped_lm.errors import GvcError
from grouped_lm.report.series import Point

# Okabe and Ito's colours for every kind of sight; marks and dashes tell the same apart in grey.
STYLES: tuple[tuple[Any, ...], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "^", "--"),
    ("#009E73", "s", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", "-"),
    ("#56B4E9", "P", "--"),
)
DENSE_STYLE = ("#000000", "X", (0, (5, 2)))
HEADS = ("grouped", "shortlist", "film", "class_full", "adaptive", "low_rank")
"""Heads with a colour of their own, that of the same place in `STYLES`."""
GREY = "#555555"
LINE_POINTS = 14
"""Height of a line of text."""
LINE_LETTERS = 66
"""Letters under a title that fit at full size."""
LOOK: dict[Any, Any] = {
    "svg.hashsalt": "gvc",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,  # inches; names at the right end need not touch the edge
    "figure.constrained_layout.h_pad": 0.08,
}


class PlotLibraryError(GvcError):
    """matplotlib is not installed."""


@dataclass
class Label:
    """A text at the end of a line."""

    y: float
    text: str
    color: str


@contextmanager
def styled_matplotlib() -> Iterator[Any]:
    """Give matplotlib in our look, and leave that of a notebook around us alone."""
    try:
        import matplotlib
    except ImportError as error:
        raise PlotLibraryError("no plots: they need matplotlib, pip install 'grouped-lm[report]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # also nobody's matplotlibrc
        matplotlib.rcParams.update(LOOK)
        yield matplotlib


def style_of(series: str, points: list[Point]) -> tuple[Any, ...]:
    """Return colour, mark and dashes of a series; dense ones are black."""
    names = sorted({p.series for p in points if p.head != "dense"})
    return STYLES[names.index(series) % len(STYLES)] if series in names else DENSE_STYLE


def styles_by_head(names: list[str]) -> dict[str, tuple[Any, ...]]:
    """Return colour, mark and dashes of names that begin with their head: one colour per head on every picture.

    Args:
        names: of what is drawn together; those of one head differ in mark and dashes.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for name in sorted(set(names), key=lambda name: (len(name), name)):
        head = name.split(",")[0].split(" ")[0]
        base = DENSE_STYLE if head == "dense" else STYLES[HEADS.index(head)] if head in HEADS else (GREY, "h", ":")
        others = sum(style[0] == base[0] for style in found.values())
        place = STYLES.index(base) if base in STYLES else 0
        shape = STYLES[(place + others) % len(STYLES)] if others else base
        found[name] = (base[0], *shape[1:])
    return found


def set_scale(axis: Any, values: list[float], from_zero: bool = False) -> None:
    """Make an axis logarithmic where figures differ eightfold, with plain numbers on it.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        values: what it shows.
        from_zero: let a linear axis start at zero.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes, name = axis.axes, axis.axis_name
    low, high = min(values), max(values)
    if low > 0 and high / low >= 8:
        getattr(axes, f"set_{name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
        axis.set_minor_locator(NullLocator())
        if high / low < 20:  # at least two numbers in sight
            getattr(axes, f"set_{name}lim")(low / 1.6, high * 1.6)
    elif from_zero:
        getattr(axes, f"set_{name}lim")(0, high * 1.1)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))


def name_sizes(axes: Any, sizes: list[int]) -> None:
    """Make x logarithmic in powers of two, with ticks at every or, where there are many, every second one."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    powers = range(math.floor(math.log2(sizes[0])), math.ceil(math.log2(sizes[-1])) + 1)
    ticks = [2**power for power in powers[:: 2 if len(powers) > 8 else 1]]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def write_title(axes: Any, title: str, below: str) -> None:
    """Write what is shown, and under it in grey of what."""
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", pad=22)
    spot = {"xycoords": "axes fraction", "textcoords": "offset points", "color": GREY}
    axes.annotate(below, (0, 1), (0, 7), fontsize=min(10.0, 10.0 * LINE_LETTERS / max(1, len(below))), **spot)


def label_ends(axes: Any, labels: list[Label]) -> None:
    """Write names to the right of lines, pushed apart where they would overlap."""
    points_high = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = LINE_POINTS / points_high
    to_axes = axes.transData + axes.transAxes.inverted()
    places = sorted((float(to_axes.transform((axes.get_xlim()[1], lb.y))[1]), i) for i, lb in enumerate(labels))
    heights = [place for place, _ in places]
    for _ in range(50):  # each pass moves neighbours apart by halves, so that a crowd spreads both ways
        for low in range(len(heights) - 1):
            lack = gap - (heights[low + 1] - heights[low])
            if lack > 1e-9:
                heights[low] -= lack / 2
                heights[low + 1] += lack / 2
    for height, (_, i) in zip(heights, places, strict=True):
        spot = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center"}
        axes.annotate(labels[i].text, (1, height), (6, 0), color=labels[i].color, annotation_clip=False, **spot)


def halo() -> list[Any]:
    """Return the effect that keeps a text legible on top of a line."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


SPOTS: tuple[tuple[int, int, str], ...] = (
    (9, 0, "left"),
    (-9, 0, "right"),
    (0, 12, "center"),
    (0, -12, "center"),
    (8, 10, "left"),
    (-8, 10, "right"),
    (8, -10, "left"),
    (-8, -10, "right"),
)


def label_points(axes: Any, spots: list[tuple[float, float, str, str]]) -> None:
    """Write a name beside every point where there is room; the first ones choose first, those without room go without.

    Args:
        axes: with its limits set.
        spots: x, y, name, colour.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # sizes of texts are known only then
    marks = [axes.transData.transform((x, y)) for x, y, _, _ in spots]
    scale, frame = figure.dpi / 72, axes.get_window_extent()
    taken: list[Any] = []
    for (x, y, name, color), mark in zip(spots, marks, strict=True):
        for right, up, side in SPOTS:
            text = axes.annotate(
                name,
                (x, y),
                (right, up),
                textcoords="offset points",
                ha=side,
                va="center",
                color=color,
                fontsize=9.5,
                path_effects=halo(),
            )
            box = text.get_window_extent()
            hits = any(box.overlaps(other) for other in taken)
            hits |= any(box.padded(3 * scale).contains(*m) for m in marks if m is not mark)
            if not hits and frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1:
                taken.append(box)
                break
            text.remove()
