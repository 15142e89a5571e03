"""The style of all figures, and the functions that draw and save one. matplotlib is loaded when a figure is drawn.

The look is in `gvc.mplstyle`. Names are written beside lines and points; there are no legends to look up.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

from grouped_lm.errors import GvcError
from grouped_lm.system.files import write_bytes

Draw = Callable[[Any], None]
"""Draws on matplotlib axes."""


class Style(NamedTuple):
    """Colour, mark and dashes of a line, by the names of matplotlib."""

    color: str
    marker: str | None
    linestyle: Any


# Okabe and Ito's colours, for every kind of sight. Marks and dashes tell the same apart in grey.
STYLES = (
    Style("#0072B2", "o", "-"),
    Style("#D55E00", "^", "--"),
    Style("#009E73", "s", "-."),
    Style("#CC79A7", "D", ":"),
    Style("#E69F00", "v", "-"),
    Style("#56B4E9", "P", "--"),
)
GREY, BAND = "#555555", "#c4c4c4"
DENSE_STYLE, OTHER_STYLE = Style("#000000", "X", (0, (5, 2))), Style(GREY, "h", ":")
LIMIT_STYLE = Style("#000000", None, "--")
"""Of floors and caps."""
HEADS = ("grouped", "shortlist", "film", "class_full", "adaptive", "low_rank")
"""Heads with a colour of their own: that of the same place in `STYLES`."""
SVG_METADATA = {"Date": None, "Creator": None}
TITLE_LETTERS = 66
"""Letters of a subtitle that fit at full size."""
LINE_POINTS = 14
"""Height of a line of text."""


class PlotLibraryError(GvcError):
    """matplotlib is not installed."""


@dataclass(frozen=True)
class Line:
    """A line of a figure, with its name at its right end."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: Style
    errors: list[list[float]] | None = None
    """Distances below and above each point."""


@contextmanager
def styled_matplotlib() -> Iterator[Any]:
    """Give matplotlib with our style, and restore the settings of the caller.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    try:
        import matplotlib.style
    except ImportError as error:
        raise PlotLibraryError("no plots: they need matplotlib, pip install 'grouped-lm[report]'") from error
    with matplotlib.rc_context(), as_file(files("grouped_lm.report") / "gvc.mplstyle") as path:
        matplotlib.rcdefaults()  # the user's matplotlibrc does not count
        matplotlib.style.use(path)
        yield matplotlib


def make_figure(draw: Draw, size: tuple[float, float] | None = None) -> Any:
    """Return a figure with one pair of axes, drawn; call it within `styled_matplotlib`.

    Args:
        draw: gets the axes.
        size: width and height, inches; None for that of the style.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    return figure


def save_figure(stem: Path, draw: Draw, size: tuple[float, float] | None = None) -> list[Path]:
    """Draw a figure as `make_figure` does, and write it as SVG and PNG, without dates and versions inside.

    Args:
        stem: path of the files without a suffix.
        draw: gets the axes.
        size: width and height, inches.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    written = []
    with styled_matplotlib():
        figure = make_figure(draw, size)
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, metadata in ((".svg", SVG_METADATA), (".png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=suffix[1:], metadata=metadata)
            written.append(stem.with_name(f"{stem.name}{suffix}"))
            write_bytes(written[-1], content.getvalue())
    return written


def render_svg(draw: Draw, size: tuple[float, float] | None = None) -> str:
    """Draw a figure as `make_figure` does, and return its SVG, the same text for the same figure.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    with styled_matplotlib():
        text = io.StringIO()
        make_figure(draw, size).savefig(text, format="svg", metadata=SVG_METADATA)
    return text.getvalue()


def styles_by_head(names: Sequence[str]) -> dict[str, Style]:
    """Return the style of each name that begins with a head: one colour per head in every figure, black for dense.

    Args:
        names: of everything in one figure. Names of one head differ in mark and dashes.
    """
    styles: dict[str, Style] = {}
    for name in sorted(set(names), key=lambda name: (len(name), name)):
        head = name.split(",")[0].split(" ")[0]
        base = STYLES[HEADS.index(head)] if head in HEADS else DENSE_STYLE if head == "dense" else OTHER_STYLE
        others = sum(style.color == base.color for style in styles.values())
        place = STYLES.index(base) if base in STYLES else 0
        shape = STYLES[(place + others) % len(STYLES)] if others else base
        styles[name] = shape._replace(color=base.color)
    return styles


def draw_lines(axes: Any, lines: Sequence[Line]) -> None:
    """Draw lines, with their errors where they have some."""
    for line in lines:
        axes.errorbar(line.xs, line.ys, yerr=line.errors, **line.style._asdict())


def finish(axes: Any, title: str, below: str, lines: Sequence[Line] = ()) -> None:
    """Write the title, a grey subtitle, and right of each line its name; the axes' limits must be final.

    Names move apart where they would overlap.
    """
    axes.set_title(title)
    size = min(10.0, 10.0 * TITLE_LETTERS / max(1, len(below)))
    spot: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(below, (0, 1), (0, 7), fontsize=size, color=GREY, **spot)
    gap = LINE_POINTS / (axes.get_window_extent().height * 72 / axes.figure.dpi)
    to_axes, right = axes.transData + axes.transAxes.inverted(), axes.get_xlim()[1]
    ends = sorted((float(to_axes.transform((right, line.ys[-1]))[1]), i) for i, line in enumerate(lines))
    heights = [height for height, _ in ends]
    for _ in range(50):  # each pass moves neighbours apart by half of what is missing, so that a crowd spreads
        for low in range(len(heights) - 1):
            missing = gap - (heights[low + 1] - heights[low])
            if missing > 1e-9:
                heights[low] -= missing / 2
                heights[low + 1] += missing / 2
    spot |= {"va": "center", "annotation_clip": False}
    for height, (_, i) in zip(heights, ends, strict=True):
        axes.annotate(lines[i].name, (1, height), (6, 0), color=lines[i].style.color, **spot)


def set_scale(axis: Any, values: Sequence[float], from_zero: bool = False) -> None:
    """Make an axis logarithmic if the values differ by a factor of eight, with plain numbers on it.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        values: everything that it shows.
        from_zero: let a linear axis start at zero.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes, name = axis.axes, axis.axis_name
    low, high = min(values), max(values)
    if low > 0 and high / low >= 8:
        getattr(axes, f"set_{name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
        axis.set_minor_locator(NullLocator())
        if high / low < 20:  # so that two numbers are visible
            getattr(axes, f"set_{name}lim")(low / 1.6, high * 1.6)
    elif from_zero:
        getattr(axes, f"set_{name}lim")(0, high * 1.1)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))


def set_log_scale(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def halo() -> list[Any]:
    """Return the effect that keeps text readable on top of a line."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def label_points(axes: Any, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write a name beside every point that has space for one; the first points choose first.

    Args:
        axes: with final limits.
        points: x, y, name, colour.
    """
    axes.figure.draw_without_rendering()  # before this, the sizes of texts are not known
    marks = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    margin, frame, taken = 3 * axes.figure.dpi / 72, axes.get_window_extent(), list[Any]()
    sides = ((9, 0, "left"), (-9, 0, "right"), (0, 12, "center"), (0, -12, "center"))
    corners = ((8, 10, "left"), (-8, 10, "right"), (8, -10, "left"), (-8, -10, "right"))
    look = {"textcoords": "offset points", "va": "center", "fontsize": 9.5, "path_effects": halo()}
    for (x, y, name, color), mark in zip(points, marks, strict=True):
        for right, up, side in (*sides, *corners):
            text = axes.annotate(name, (x, y), (right, up), ha=side, color=color, **look)
            box = text.get_window_extent()
            hits = any(box.overlaps(other) for other in taken)
            hits |= any(box.padded(margin).contains(*other) for other in marks if other is not mark)
            if not hits and frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1:
                taken.append(box)
                break
            text.remove()


def set_powers_of_two(axes: Any, values: Sequence[float]) -> None:
    """Make x logarithmic, with ticks at powers of two; at every second one if there are many."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    powers = range(math.floor(math.log2(min(values))), math.ceil(math.log2(max(values))) + 1)
    ticks = [2**power for power in powers[:: 2 if len(powers) > 8 else 1]]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
