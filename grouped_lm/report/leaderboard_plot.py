"""The leaderboard as figures: the distance of heads to the best dense one, losses against tokens and against time."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

from grouped_lm.report.contest import Place
from grouped_lm.report.leaderboard import Standing, curve_points, short_names
from grouped_lm.report.style import Line, draw_lines, finish, save_figure, set_log_scale, styles_by_head

TIMED = ("data", "threads", "machine")
"""Columns in which runs at equal time are alike in one figure."""
MAX_GAP = 0.4
"""Nats at the end of training. Heads beyond are named in the subtitle instead of drawn, if they are the minority."""
MAX_LETTERS = 40
"""Letters of a name beside its line."""
MAX_LINES = 14
"""With more heads, each kind of head keeps its best ones."""


def write_place_plots(place: Place, standings: Sequence[Standing], reference: str, folder: Path) -> list[Path]:
    """Draw the differences along training, and for a contest the losses too; return the files."""
    stem = folder / place.name.replace("/", "-")
    drawn = write_leaderboard_plot(place.title, standings, reference.replace(",", " or "), stem)
    if any(row["contest"] for row in place.rows):
        drawn += write_tokens_plot(place.title, standings, stem.with_name(f"tokens-{stem.name}"))
    return drawn


def write_tokens_plot(where: str, standings: Sequence[Standing], stem: Path) -> list[Path]:
    """Draw the validation loss against tokens; return the files, none if no head has two points.

    Own vocabularies are converted: nats per token of GPT-2's vocabulary, with as many bits per byte.
    """
    shown = best_of_each([entry for entry in standings if len(mean_curve(entry.rows)) > 1])
    per_byte = [1 / bits_per_nat(entry) for entry in shown if entry.unit == "loss_nats"]

    def draw(axes: Any) -> None:
        points = {}
        for entry in shown:
            curve = mean_curve(entry.rows)
            scale = 1.0 if entry.unit == "loss_nats" or not per_byte else bits_per_nat(entry) * per_byte[0]
            points[entry.head] = [share * entry.tokens / 1e6 for share, _ in curve], [scale * y for _, y in curve]
        lines = _named_lines(shown, points)
        draw_lines(axes, lines)
        axes.set_xlabel("million tokens of training")
        axes.set_ylabel("validation loss, nats per token")
        finish(axes, "Validation loss against tokens", where, lines)

    return save_figure(stem, draw, (11.0, 5.0)) if shown else []


def write_minutes_plots(timed: Sequence[tuple[Place, Sequence[Standing]]], folder: Path) -> list[Path]:
    """Draw bits per byte against minutes, one figure for each text, number of cores and machine; return the files."""
    drawn = []
    alike: dict[tuple[str, ...], list[tuple[Place, Sequence[Standing]]]] = {}
    for place, found in timed:
        alike.setdefault(tuple(place.rows[0][key] for key in TIMED), []).append((place, found))
    machines = sorted({machine for _, _, machine in alike})
    for (data, threads, machine), own in alike.items():
        name, where = f"minutes-{data}-{threads}", f"{data}, {'one core' if threads == '1' else f'{threads} cores'}"
        if len(machines) > 1:
            name, where = f"{name}-{machines.index(machine) + 1}", f"{where}, {machine}"
        draw = partial(draw_minutes, timed=own, where=where)
        drawn += save_figure(folder / name.replace("/", "-"), draw, (11.0, 5.0))
    return drawn


def draw_minutes(axes: Any, timed: Sequence[tuple[Place, Sequence[Standing]]], where: str) -> None:
    """Draw a line for each head: along training under its longest budget, with its best body there."""
    longest: dict[str, tuple[float, Standing]] = {}
    for place, found in timed:
        for entry in found:
            minutes = float(place.rows[0]["minutes"])
            longest[entry.head] = max(longest.get(entry.head, (0.0, entry)), (minutes, entry), key=lambda pair: pair[0])
    shown = best_of_each(sorted((entry for _, entry in longest.values()), key=lambda entry: entry.bits_per_byte))
    points = {}
    for entry in shown:
        curve = mean_curve(entry.rows) or [(1.0, float(entry.rows[0]["val_loss_nats"]))]
        minutes, bits = longest[entry.head][0], bits_per_nat(entry)
        points[entry.head] = [minutes * share for share, _ in curve], [bits * nats for _, nats in curve]
    lines = _named_lines(shown, points)
    draw_lines(axes, lines)
    set_log_scale(axes.xaxis)
    axes.set_xlabel("minutes of training steps (log scale)")
    axes.set_ylabel("bits per byte, validation text")
    finish(axes, "Bits per byte against time", where, lines)


def bits_per_nat(entry: Standing) -> float:
    """Return the bits per byte of one nat per token, on the validation text."""
    return float(entry.rows[0]["val_bits_per_byte"]) / float(entry.rows[0]["val_loss_nats"])


def mean_curve(rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return (share of the run, mean nats over seeds) at the steps that all rows have."""
    curves = [curve_points(row) for row in rows]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return [(step / max(steps), sum(curve[step] for curve in curves) / len(curves)) for step in steps]


def _named_lines(shown: Sequence[Standing], points: dict[str, tuple[list[float], list[float]]]) -> list[Line]:
    names = short_names(shown)
    styles = styles_by_head(list(names.values()))
    return [
        Line(shorten(names[e.head], MAX_LETTERS, placeholder=" ..."), *points[e.head], styles[names[e.head]])
        for e in shown
    ]


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
