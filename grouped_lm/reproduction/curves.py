"""Pictures with their words, and the learning curves of the main methods against tokens, time and memory."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from grouped_lm.report.style import Draw, Line, Style, draw_lines, finish, render_svg, styles_by_head
from grouped_lm.reproduction.claims import Claims
from grouped_lm.reproduction.evidence import Evidence, Row
from grouped_lm.reproduction.tables import FAMILIES, main_settings, runs_in
from grouped_lm.reproduction.verdicts import Setting

HEADS = {"dense": "dense", "paper": "grouped", "ours": "shortlist"}
"""The main methods and their heads."""
SIZE, WIDE = (5.4, 3.9), (6.4, 4.2)
"""Inches: letters are readable where the picture is as wide as a phone; sections of `WIDE` pictures have long names."""
WIDE_SECTIONS = ("sizes", "fronts", "speed", "vocabularies")
MARKS = (0.1, 0.25, 0.5, 1.0)
"""Shares of the steps that have a mark in the figure of memory."""


@dataclass(frozen=True)
class Picture:
    """One picture of the report."""

    name: str
    section: str
    """Key of the section of the page."""
    alt: str
    """What it shows, in words."""
    draw: Draw

    @cached_property
    def svg(self) -> str:
        """The drawn picture."""
        return render_svg(self.draw, WIDE if self.section in WIDE_SECTIONS else SIZE)


def style(method: str) -> Style:
    """Return the style of one of the main methods: that of its head."""
    return styles_by_head([HEADS[method]])[HEADS[method]]


@dataclass(frozen=True)
class Curve:
    """The mean training loss of a method over seeds, step by step."""

    method: str
    label: str
    tokens: list[int]
    minutes: list[float]
    losses: list[float]
    peak_gib: float | None


def curves_of(claims: Claims, evidence: Evidence, setting: Setting) -> list[Curve]:
    """Return the training curves of the main methods in a setting, at the steps that all seeds have."""
    rows: dict[str, dict[int, Row]] = {}
    for row in evidence["curves"]:
        if row.get("train_loss") is not None:
            rows.setdefault(row["run"], {})[row["step"]] = row
    curves = []
    for name in HEADS:
        runs = runs_in(evidence, claims.methods[name], setting)
        seeds = [rows[run["run"]] for run in runs.values() if run["run"] in rows]
        steps = sorted(set.intersection(*map(set, seeds))) if seeds else []
        if len(steps) < 2:
            continue
        means = {
            key: [statistics.fmean(seed[step].get(key) or 0.0 for seed in seeds) for step in steps]
            for key in ("seconds", "train_loss")
        }
        tokens, minutes = [seeds[0][step]["tokens"] for step in steps], [value / 60 for value in means["seconds"]]
        peaks = [run["memory/peak"] for run in runs.values() if run.get("memory/peak")]
        peak = statistics.fmean(peaks) if peaks else None
        curves.append(Curve(name, claims.methods[name].name, tokens, minutes, means["train_loss"], peak))
    return curves


def curve_pictures(claims: Claims, evidence: Evidence) -> Iterator[Picture]:
    """Yield the learning curves of both families against tokens, time and memory."""
    for body, family in FAMILIES:
        for setting in main_settings(claims, evidence, body)[:1]:
            curves = curves_of(claims, evidence, setting)
            known = [curve for curve in curves if curve.peak_gib]
            if not curves:
                continue
            ends = ", ".join(f"{curve.label} {curve.losses[-1]:.2f}" for curve in curves)
            minutes = ", ".join(f"{curve.label} {curve.minutes[-1]:.1f}" for curve in curves)
            peaks = ", ".join(f"{curve.label} {curve.peak_gib:.3f}" for curve in known)
            notes = {
                "tokens": ("tokens", ""),
                "minutes": ("time", f" Minutes: {minutes}."),
                "memory": ("memory", f" Marks at 10, 25, 50 and 100 % of the steps. Peak GiB: {peaks}."),
            }
            for axis, (what, note) in notes.items():
                if axis != "memory" or known:
                    alt = f"Training loss of the {family} body against {what}; at the end {ends} nats per token.{note}"
                    title, below = f"{family}: loss against {what}", f"after {setting.describe()}"
                    draw = partial(draw_curves, curves=curves, axis=axis, title=title, below=below)
                    yield Picture(f"curve-{family.lower()}-{axis}", "curves", alt, draw)


def draw_curves(axes: Any, curves: list[Curve], axis: str, title: str, below: str) -> None:
    """Draw training losses against tokens, minutes or peak memory."""
    axes.set_ylabel("training loss (nats per token)")
    if axis == "memory":
        for curve in curves:
            if curve.peak_gib is not None:
                ys = [curve.losses[round(share * (len(curve.losses) - 1))] for share in MARKS]
                draw_lines(axes, [Line(curve.label, [curve.peak_gib] * len(ys), ys, style(curve.method))])
                spot = {"textcoords": "offset points", "ha": "center", "color": style(curve.method).color}
                axes.annotate(curve.label, (curve.peak_gib, ys[-1]), (0, -13), **spot)
        axes.margins(x=0.25, y=0.18)
        axes.set_xlim(left=0)
        axes.set_xlabel("peak memory of a step (GiB)")
        finish(axes, title, below)
        return
    lines = []
    for curve in curves:
        color, _, dashes = style(curve.method)
        xs = [count / 1e6 for count in curve.tokens] if axis == "tokens" else curve.minutes
        lines.append(Line(curve.label, xs, curve.losses, Style(color, None, dashes)))
    draw_lines(axes, lines)
    axes.set_xlabel("million tokens" if axis == "tokens" else "minutes of training steps")
    axes.margins(x=0.01)
    finish(axes, title, below, lines)
