"""The ladder as a picture: how far heads are from the best dense one, along training."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

from grouped_lm.report.figures import save_figure
from grouped_lm.report.leaderboard import Standing, short_names
from grouped_lm.report.style import Label, label_ends, styles_by_head, write_title

FARTHEST = 0.4
"""Nats at the end beyond which a head is named under the title instead of drawn, where that is the lesser part."""
LONGEST = 40
"""Letters of a name beside its line."""
MOST = 14
"""Lines of a picture: of more, each head keeps its best ones."""


def write_ladder_plot(where: str, found: Sequence[Standing], reference: str, stem: Path) -> list[Path]:
    """Draw one body, text and length; return the files, none where there is nothing to compare.

    Args:
        where: what body, text and length.
        found: see `standings`.
        reference: the head that they are held against.
        stem: of the files, without a suffix.
    """
    drawn = [entry for entry in found if len(entry.trend) > 1]
    if len(drawn) < 2:
        return []
    return save_figure(stem, partial(draw_trends, found=drawn, reference=reference, where=where), (11.0, 5.0))


def draw_trends(axes: Any, found: Sequence[Standing], reference: str, where: str) -> None:
    """Draw mean differences in nats, over the seeds that both have, against tokens; who is too far is named."""
    shown = best_of_each(found)
    near = [entry for entry in shown if abs(entry.trend[-1][1]) <= FARTHEST]
    near = near if 2 * len(near) > len(shown) else shown
    names = short_names(shown)
    styles = styles_by_head([names[entry.head] for entry in near])
    labels = []
    for entry in near:
        color, mark, dashes = styles[names[entry.head]]
        tokens = [share * entry.tokens / 1e6 for share, _ in entry.trend]
        gaps = [gap for _, gap in entry.trend]
        axes.plot(tokens, gaps, color=color, marker=mark, linestyle=dashes)
        labels.append(Label(gaps[-1], shorten(names[entry.head], LONGEST, placeholder=" ..."), color))
    axes.set_xlabel("million tokens of training")
    axes.set_ylabel(f"nats over the best {reference}")
    far = [
        f"{shorten(names[entry.head], LONGEST, placeholder=' ...')} {entry.trend[-1][1]:+.2f}"
        for entry in shown
        if entry not in near
    ]
    hidden = f"; {len(found) - len(shown)} more are in the table" if len(found) > len(shown) else ""
    subtitle = "; outside the frame: ".join(filter(None, [where, ", ".join(far)])) + hidden
    write_title(axes, f"Validation loss beside {reference}, along training", subtitle)
    label_ends(axes, labels)


def best_of_each(found: Sequence[Standing]) -> list[Standing]:
    """Return as many of each head's best standings, one at least, as make `MOST` or fewer, in their order."""
    before: Counter[str] = Counter()
    places = []
    for entry in found:
        places.append(before[entry.settings["name"]])
        before[entry.settings["name"]] += 1
    count = max((n for n in range(1, len(found) + 1) if sum(place < n for place in places) <= MOST), default=1)
    return [entry for entry, place in zip(found, places, strict=True) if place < count]
