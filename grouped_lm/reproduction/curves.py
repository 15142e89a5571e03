"""Learning curves against tokens, time and memory; and how the three main methods look in every picture."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from grouped_lm.report.style import Label, label_ends, styles_by_head, write_title
from grouped_lm.reproduction.claims import Claims
from grouped_lm.reproduction.evidence import Evidence, Row
from grouped_lm.reproduction.tables import main_settings, runs_in
from grouped_lm.reproduction.verdicts import Setting

MAIN = ("dense", "paper", "ours")
HEADS = {"dense": "dense", "paper": "grouped", "ours": "shortlist"}

Draw = Callable[[Any], None]


Job = tuple[str, str, str, str, Draw]
"""Name, section, title, what it shows in words, and what draws it."""


def style(name: str) -> tuple[Any, ...]:
    """Return colour, mark and dashes of one of the three main methods."""
    return styles_by_head([HEADS[name]])[HEADS[name]]


@dataclass(frozen=True)
class Curve:
    """Means over seeds, step by step."""

    method: str
    label: str
    tokens: list[int]
    minutes: list[float]
    losses: list[float]
    peak_gib: float | None


def curves_of(claims: Claims, evidence: Evidence, setting: Setting) -> list[Curve]:
    """Return the training curves of the main methods in a setting, at steps that all seeds have."""
    rows: dict[str, list[Row]] = {}
    for row in evidence["curves"]:
        if row.get("train_loss") is not None:
            rows.setdefault(row["run"], []).append(row)
    found = []
    for name in MAIN:
        runs = runs_in(evidence, claims.methods[name], setting)
        curves = [{r["step"]: r for r in rows[run["run"]]} for run in runs.values() if run["run"] in rows]
        steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        if len(steps) < 2:
            continue
        peaks = [run["memory/peak"] for run in runs.values() if run.get("memory/peak")]

        def mean(key: str, step: int, curves: list[dict[int, Row]] = curves) -> float:
            return statistics.fmean(curve[step].get(key) or 0.0 for curve in curves)

        found.append(
            Curve(
                name,
                claims.methods[name].name,
                [curves[0][step]["tokens"] for step in steps],
                [mean("seconds", step) / 60 for step in steps],
                [mean("train_loss", step) for step in steps],
                statistics.fmean(peaks) if peaks else None,
            )
        )
    return found


def curve_jobs(claims: Claims, evidence: Evidence) -> list[Job]:
    """Return learning curves against tokens, time and memory, of both families."""
    jobs: list[Job] = []
    for body, family in (("gpt2", "GPT-2"), ("gpt_neo", "GPT-Neo")):
        for setting in main_settings(claims, evidence, body)[:1]:
            curves = curves_of(claims, evidence, setting)
            if not curves:
                continue
            ends = ", ".join(f"{c.label} {c.losses[-1]:.2f}" for c in curves)
            for axis, what in (("tokens", "tokens"), ("minutes", "time"), ("memory", "memory")):
                alt = f"Training loss of the {family} body against {what}; at the end {ends} nats per token."
                if axis == "minutes":
                    alt += " Minutes: " + ", ".join(f"{c.label} {c.minutes[-1]:.1f}" for c in curves) + "."
                if axis == "memory":
                    known = [c for c in curves if c.peak_gib]
                    alt += (
                        " Marks at 10, 25, 50 and 100 % of the steps. Peak GiB: "
                        + ", ".join(f"{c.label} {c.peak_gib:.3f}" for c in known)
                        + "."
                    )
                    if not known:
                        continue
                name = f"curve-{family.lower()}-{axis}"
                title = f"{family}: loss against {what}"
                draw = partial(draw_curves, curves=curves, axis=axis, title=title, below=f"after {setting.describe()}")
                jobs.append((name, "curves", title, alt, draw))
    return jobs


def draw_curves(axes: Any, curves: list[Curve], axis: str, title: str, below: str) -> None:
    """Draw training losses against tokens or minutes; against peak memory downwards, marks at 10, 25, 50, 100 %."""
    labels = []
    for curve in curves:
        color, mark, dashes = style(curve.method)
        if axis == "memory":
            if curve.peak_gib is None:
                continue
            spots = [round(share * (len(curve.losses) - 1)) for share in (0.1, 0.25, 0.5, 1.0)]
            ys = [curve.losses[spot] for spot in spots]
            axes.plot([curve.peak_gib] * len(ys), ys, color=color, marker=mark, linestyle=dashes, markersize=5)
            axes.annotate(
                curve.label, (curve.peak_gib, ys[-1]), (0, -13), textcoords="offset points", color=color, ha="center"
            )
            continue
        xs = [x / 1e6 for x in curve.tokens] if axis == "tokens" else curve.minutes
        axes.plot(xs, curve.losses, color=color, linestyle=dashes, linewidth=1.8)
        labels.append(Label(curve.losses[-1], curve.label, color))
    axes.set_ylabel("training loss (nats per token)")
    if axis == "memory":
        axes.margins(x=0.25, y=0.18)
        axes.set_xlim(left=0)
        axes.set_xlabel("peak memory of a step (GiB)")
    else:
        axes.set_xlabel("million tokens" if axis == "tokens" else "minutes of training steps")
        axes.margins(x=0.01)
    write_title(axes, title, below)
    label_ends(axes, labels)
