"""The pictures of the report, each with what it shows in words. A picture without data is left out."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from grouped_lm.bench.plots import draw_by_vocab, draw_claim, draw_rates
from grouped_lm.report.figures import BY_SIZE, HEAD_MEMORY, PERPLEXITY, draw_by_group_size, draw_pareto
from grouped_lm.report.series import Point, collect_points
from grouped_lm.report.style import (
    GREY,
    STYLES,
    Draw,
    Line,
    Style,
    draw_lines,
    finish,
    render_svg,
    set_log_scale,
    styles_by_head,
)
from grouped_lm.reproduction.claims import Claims
from grouped_lm.reproduction.cost_rules import STEPS_ALIKE, in_chunks
from grouped_lm.reproduction.evidence import Evidence, Row
from grouped_lm.reproduction.gaps import Gap, describe_trends, gaps_of
from grouped_lm.reproduction.tables import FAMILIES, MAIN, main_settings
from grouped_lm.reproduction.verdicts import Setting, runs_in, setting_of
from grouped_lm.runs.query import MEMORY, QUALITY, SPEED
from grouped_lm.system.tables import MIB, group_rows

SIZE, WIDE = (5.4, 3.9), (6.4, 4.2)
"""Inches: letters are readable where the picture is as wide as a phone; sections of `WIDE` pictures have long names."""
WIDE_SECTIONS = ("sizes", "fronts", "speed", "vocabularies")
MARKS = (0.1, 0.25, 0.5, 1.0)
"""Shares of the steps that have a mark in the figure of memory."""
PARTS = {"weights": 0, "gradients": 4, "optimizer": 2, "body": 5, "head": 1, "temporary": 3}
"""Part of a step's memory -> place of its colour in `STYLES`."""


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
        wide = self.section in WIDE_SECTIONS or self.name.startswith("steps-")
        return render_svg(self.draw, WIDE if wide else SIZE)


def style(method: str) -> Style:
    """Return the style of one of the main methods: that of its head."""
    head = {"dense": "dense", "paper": "grouped", "film": "film", "ours": "shortlist"}[method]
    return styles_by_head([head])[head]


def all_pictures(claims: Claims, evidence: Evidence) -> list[Picture]:
    """Return every picture for which the evidence has points."""
    return [
        *curve_pictures(claims, evidence),
        *memory_pictures(claims, evidence),
        *size_pictures(evidence),
        *front_pictures(claims, evidence),
        *decile_pictures(claims, evidence),
        *bench_pictures(claims, evidence),
        *gap_pictures(claims, evidence),
    ]


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
    for name in MAIN:
        runs = runs_in(evidence, claims.methods[name], setting)
        seeds = [rows[run["run"]] for run in runs.values() if run["run"] in rows]
        steps = sorted(set.intersection(*map(set, seeds))) if seeds else []
        if len(steps) < 2:
            continue
        minutes = [statistics.fmean(seed[step].get("seconds") or 0.0 for seed in seeds) / 60 for step in steps]
        losses = [statistics.fmean(seed[step]["train_loss"] for seed in seeds) for step in steps]
        peaks = [run["memory/peak"] for run in runs.values() if run.get("memory/peak")]
        peak, tokens = statistics.fmean(peaks) if peaks else None, [seeds[0][step]["tokens"] for step in steps]
        curves.append(Curve(name, claims.methods[name].name, tokens, minutes, losses, peak))
    return curves


def curve_pictures(claims: Claims, evidence: Evidence) -> Iterator[Picture]:
    """Yield the learning curves of both families against tokens, time and memory."""
    for body, family in FAMILIES.items():
        for setting in main_settings(claims, evidence, body)[:1]:
            curves = curves_of(claims, evidence, setting)
            known = [curve for curve in curves if curve.peak_gib]
            if not curves:
                continue
            ends = ", ".join(f"{curve.label} {curve.losses[-1]:.2f}" for curve in curves)
            minutes = ", ".join(f"{curve.label} {curve.minutes[-1]:.1f}" for curve in curves)
            peaks = ", ".join(f"{curve.label} {curve.peak_gib:.3f}" for curve in known)
            notes = {"tokens": "", "minutes": f" Minutes: {minutes}."}
            if known:
                notes["memory"] = f" Marks at 10, 25, 50 and 100 % of the steps. Peak GiB: {peaks}."
            for axis, note in notes.items():
                what = "time" if axis == "minutes" else axis
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
    xs = [[n / 1e6 for n in curve.tokens] if axis == "tokens" else curve.minutes for curve in curves]
    styles = [style(curve.method)._replace(marker=None) for curve in curves]
    lines = [Line(c.label, x, c.losses, look) for c, x, look in zip(curves, xs, styles, strict=True)]
    draw_lines(axes, lines)
    axes.set_xlabel("million tokens" if axis == "tokens" else "minutes of training steps")
    axes.margins(x=0.01)
    finish(axes, title, below, lines)


def gap_pictures(claims: Claims, evidence: Evidence) -> Iterator[Picture]:
    """Yield the gap to the full softmax against tokens in the main setting."""
    for setting in main_settings(claims, evidence)[:1]:
        gaps = [gap for gap in gaps_of(claims, evidence, setting) if len(gap.gaps) > 1]
        if gaps:
            where = setting.describe()
            alt = (
                f"Validation loss minus that of the full softmax along training; after {where} {describe_trends(gaps)}."
            )
            yield Picture("gaps", "summary", alt, partial(draw_gaps, gaps=gaps, below=where))


def draw_gaps(axes: Any, gaps: list[Gap], below: str) -> None:
    """Draw the gap of each method against tokens, on a logarithmic axis."""
    lines = [Line(gap.name, [n / 1e6 for n in gap.gaps], list(gap.gaps.values()), style(gap.method)) for gap in gaps]
    draw_lines(axes, lines)
    axes.axhline(0, color=GREY, linewidth=1)
    set_log_scale(axes.xaxis)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("nats over the full softmax")
    finish(axes, "Loss over the full softmax along training", below, lines)


def claimed_models(claims: Claims, rule: str) -> list[str]:
    """Return the bodies of the claim that a rule decides: those of the paper."""
    return next((claim.options["models"] for claim in claims.claims if claim.rule == rule), [])


def memory_pictures(claims: Claims, evidence: Evidence) -> Iterator[Picture]:
    """Yield memory by part for the largest body and batch, and the ratio over batches for the paper's bodies."""
    measured = [row for row in evidence["bench-memory"] if row.get("part") == "truth" and row.get("weights_bytes")]
    if measured:
        largest = max(measured, key=lambda row: (row["weights_bytes"], row["micro_batch_size"]))
        keys = ("model", "micro_batch_size", "block_size")
        rows = [row for row in measured if all(row[key] == largest[key] for key in keys)]
        shape = f"{largest['model']}, batch {largest['micro_batch_size']}, length {largest['block_size']}"
        parts = "; ".join(f"{row['head']} {row['measured_bytes'] / MIB:,.0f} MiB" for row in rows)
        alt = f"Peak memory of a training step by part, {shape}: {parts}."
        yield Picture("memory-by-part", "memory", alt, partial(draw_parts, rows=rows, below=shape))
    known = [row for row in evidence["bench-memory"] if row.get("part") == "claim" and row.get("head") is None]
    models = claimed_models(claims, "memory_ratio")
    rows = [row for row in known if row["model"] in models] or known
    if len({row["micro_batch_size"] for row in rows}) > 1:
        best = max(rows, key=lambda row: row["memory_ratio"])
        alt = (
            f"Peak memory of a step, dense over grouped, by batch, beside the paper's {best['claim_ratio']}x; the most "
            f"is {best['memory_ratio']:.2f}x with {best['model']}, {best['attention']} attention, batch "
            f"{best['micro_batch_size']}."
        )
        yield Picture("memory-claim", "summary", alt, partial(draw_claim, rows=rows))


def draw_parts(axes: Any, rows: list[Row], below: str) -> None:
    """Draw one bar per head, made of its parts."""
    lefts = [0.0] * len(rows)
    for part, number in PARTS.items():
        widths = [(row.get(f"{part}_bytes") or 0) / MIB for row in rows]
        axes.barh(range(len(rows)), widths, left=lefts, color=STYLES[number].color, label=part)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [row["head"] for row in rows])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel("MiB at the peak of a training step")
    axes.legend(ncols=3, fontsize=9, loc="upper center", bbox_to_anchor=(0.45, -0.18))
    finish(axes, "Memory by part", below)


def size_pictures(evidence: Evidence) -> Iterator[Picture]:
    """Yield memory, perplexity and speed by group size, from the setting with the most sizes."""
    own = (row for row in evidence["runs"] if row.get("head") == "grouped" and row.get("state") == "complete")
    settings = group_rows((row for row in own if setting_of(row)), lambda row: (setting_of(row),))
    rows = max(settings.values(), key=lambda rows: len({row["group_size"] for row in rows}), default=[])
    rows = [row for row in rows if row.get("grouping") == "merge_rank"]
    sizes = sorted({row["group_size"] for row in rows})
    for key, name in ((HEAD_MEMORY, "memory"), (PERPLEXITY, "perplexity"), (SPEED[0], "speed")):
        known = [row for row in rows if row.get(key) is not None]
        if len({row["group_size"] for row in known}) > 2:
            best = (max if key == SPEED[0] else min)(known, key=lambda row: row[key])["group_size"]
            alt = f"{BY_SIZE[key]} by group size, {sizes[0]:,} to {sizes[-1]:,}; best at S = {best:,}."
            draw = partial(draw_by_group_size, points=collect_points(rows), key=key)
            yield Picture(f"size-{name}", "sizes", alt, draw)


def front_pictures(claims: Claims, evidence: Evidence) -> Iterator[Picture]:
    """Yield loss against speed and against memory in the main setting."""
    points = []
    for setting in main_settings(claims, evidence)[:1]:
        for method in claims.methods.values():
            runs = runs_in(evidence, method, setting)
            if runs and method.key != "any_size":
                name = method.name + (" (in chunks)" if any(map(in_chunks, runs.values())) else "")
                text = setting.data, setting.tokenizer
                points.append(Point(name, method.match["head"], None, text, tuple(runs.values())))
    for what, key, form in (("speed", SPEED, "{:,.0f} tokens/s"), ("memory", MEMORY, "{:.3f} GiB")):
        known = [
            (p, x, y) for p in points if (x := p.mean(key[0])) is not None and (y := p.mean(QUALITY[0])) is not None
        ]
        if len(known) > 1:
            spots = "; ".join(f"{point.series} {y:.3f} nats at {form.format(x)}" for point, x, y in known)
            draw = partial(draw_pareto, points=[point for point, _, _ in known], against=key)
            yield Picture(f"front-{what}", "fronts", f"Validation loss against {what}: {spots}.", draw)


def decile_pictures(claims: Claims, evidence: Evidence) -> Iterator[Picture]:
    """Yield the loss minus the dense one by training frequency."""
    losses: dict[str, dict[str, float]] = {}
    for row in evidence["deciles"]:
        losses.setdefault(row["run"], {})[row["decile"]] = row["loss"]
    for setting in main_settings(claims, evidence)[:1]:
        dense = runs_in(evidence, claims.methods["dense"], setting)
        gaps: dict[str, dict[str, list[float]]] = {}
        for name in ("paper", "ours"):
            for seed, run in runs_in(evidence, claims.methods[name], setting).items():
                base = losses.get(dense[seed]["run"], {}) if seed in dense else {}
                for decile, loss in losses.get(run["run"], {}).items():
                    if decile in base:
                        gaps.setdefault(name, {}).setdefault(decile, []).append(loss - base[decile])
        parts = []
        for name, by_decile in gaps.items():
            seen = [decile for decile in by_decile if "never" not in decile] or [*by_decile]
            first, last = seen[0], seen[-1]
            means = [f"{statistics.fmean(by_decile[decile]):+.2f}" for decile in (first, last)]
            parts.append(f"{claims.methods[name].name} {means[0]} nats in {first}, {means[1]} in {last}")
        if gaps:
            alt = "Loss over dense by training frequency: " + "; ".join(parts) + "."
            draw = partial(draw_deciles, gaps=gaps, claims=claims, below=f"after {setting.describe()}")
            yield Picture("deciles", "deciles", alt, draw)


def draw_deciles(axes: Any, gaps: dict[str, dict[str, list[float]]], claims: Claims, below: str) -> None:
    """Draw means over seeds with their range, the most frequent tokens first."""
    names = list(dict.fromkeys(decile for by_decile in gaps.values() for decile in by_decile))
    lines = []
    for name, by_decile in gaps.items():
        means = [statistics.fmean(values) for values in by_decile.values()]
        pairs = list(zip(means, by_decile.values(), strict=True))
        errors = [[mean - min(values) for mean, values in pairs], [max(values) - mean for mean, values in pairs]]
        xs = [names.index(decile) for decile in by_decile]
        lines.append(Line(claims.methods[name].name, xs, means, style(name), errors))
    draw_lines(axes, lines)
    axes.axhline(0, color=GREY, linewidth=1)
    short = ["new" if "never" in name else name.split("(")[0].removeprefix("decile ").strip() for name in names]
    axes.set_xticks(range(len(names)), short)
    axes.set_xlabel("tenth of the training text, most frequent first" + (", and new tokens" if "new" in short else ""))
    axes.set_ylabel("nats over dense")
    finish(axes, "Loss over dense by training frequency", below, lines)


def bench_pictures(claims: Claims, evidence: Evidence) -> Iterator[Picture]:
    """Yield whole steps by body, and memory and time of steps over vocabularies."""
    names = {method.bench: method.name for method in claims.methods.values() if method.bench}

    def named(table: str) -> list[Row]:
        return [row | {"head": names.get(row["head"], row["head"])} for row in evidence[table]]

    claimed = claimed_models(claims, "speed_ratio")
    for model in dict.fromkeys(row["model"] for row in evidence["bench-steps"]):
        own = group_rows((row for row in named("bench-steps") if row["model"] == model), STEPS_ALIKE)
        rows = max(own.values(), key=len)
        if any(row["head"] == "no head" for row in rows) and len(rows) > 1:
            rates = "; ".join(f"{row['head']} {row['tokens_per_sec']:,.0f}" for row in rows)
            alt = f"Tokens per second of whole optimizer steps, {model}: {rates}."
            section = "summary" if model in claimed else "speed"
            yield Picture(f"steps-{model}", section, alt, partial(draw_rates, rows=rows, model=model))
    alike = group_rows((row for row in named("bench-vocab") if row.get("part") == "step"), STEPS_ALIKE).values()
    largest = max(alike, key=lambda rows: len({row["vocab_size"] for row in rows}), default=[])
    steps = sorted(largest, key=lambda row: row["vocab_size"])
    if len({row["vocab_size"] for row in steps}) < 2:
        return
    for name, key, what, columns in (
        ("vocab-memory", "bytes", "Peak memory", ("measured_bytes", "predicted_bytes")),
        ("vocab-time", "ms", "Time", ("ms",)),
    ):
        last = {row["head"]: row["vocab_size"] for row in steps if any(row.get(column) for column in columns)}
        if last:
            ends = ", ".join(f"{head} up to {size:,} tokens" for head, size in last.items())
            alt = f"{what} of a step over vocabularies: {ends}; the figures are in the table."
            yield Picture(name, "vocabularies", alt, partial(draw_by_vocab, rows=steps, key=key))
