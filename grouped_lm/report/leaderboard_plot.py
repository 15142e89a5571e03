"""The leaderboard as a figure: the distance of heads to the best dense one during training."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

from grouped_lm.report.leaderboard import Standing, short_names
from grouped_lm.report.style import Line, draw_lines, finish, save_figure, styles_by_head

MAX_GAP = 0.4
"""Nats at the end of training. Heads beyond are named in the subtitle instead of drawn, if they are the minority."""
MAX_LETTERS = 40
"""Letters of a name beside its line."""
MAX_LINES = 14
"""With more heads, each kind of head keeps its best ones."""


def write_leaderboard_plot(where: str, standings: Sequence[Standing], reference: str, stem: Path) -> list[Path]:
    """Draw one body, text and length; return the files, none if there is nothing to compare.

    Args:
        where: body, text and length in words.
        standings: of these.
        reference: the head that the others are compared with.
        stem: path of the files without a suffix.
    """
    drawn = [entry for entry in standings if len(entry.trend) > 1]
    if len(drawn) < 2:
        return []
    return save_figure(stem, partial(draw_trends, standings=drawn, reference=reference, where=where), (11.0, 5.0))


def draw_trends(axes: Any, standings: Sequence[Standing], reference: str, where: str) -> None:
    """Draw mean differences in nats against tokens, over the seeds that both heads have."""
    shown = best_of_each(standings)
    near = [entry for entry in shown if abs(entry.trend[-1][1]) <= MAX_GAP]
    near = near if 2 * len(near) > len(shown) else shown
    names = short_names(shown)
    styles = styles_by_head([names[entry.head] for entry in near])

    def name(entry: Standing) -> str:
        return shorten(names[entry.head], MAX_LETTERS, placeholder=" ...")

    lines = []
    for entry in near:
        xs, ys = [share * entry.tokens / 1e6 for share, _ in entry.trend], [gap for _, gap in entry.trend]
        lines.append(Line(name(entry), xs, ys, styles[names[entry.head]]))
    draw_lines(axes, lines)
    axes.set_xlabel("million tokens of training")
    axes.set_ylabel(f"nats over the best {reference}")
    far = ", ".join(f"{name(entry)} {entry.trend[-1][1]:+.2f}" for entry in shown if entry not in near)
    hidden = f"; {len(standings) - len(shown)} more are in the table" if len(standings) > len(shown) else ""
    subtitle = "; outside the frame: ".join(filter(None, [where, far])) + hidden
    finish(axes, f"Validation loss beside {reference}, along training", subtitle, lines)


def best_of_each(standings: Sequence[Standing]) -> list[Standing]:
    """Return the best standings of each kind of head, as many per kind (at least one) as keep to `MAX_LINES`."""
    kinds = [entry.settings["name"] for entry in standings]
    places = [kinds[:number].count(kind) for number, kind in enumerate(kinds)]
    counts = range(1, len(standings) + 1)
    count = max((n for n in counts if sum(place < n for place in places) <= MAX_LINES), default=1)
    return [entry for entry, place in zip(standings, places, strict=True) if place < count]
