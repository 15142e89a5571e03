"""Pictures of the report, and what they show in words: each is drawn where there is something to draw."""

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

from grouped_lm.bench.plots import draw_by_vocab, draw_claim, draw_rates
from grouped_lm.report.figures import draw_by_group_size, draw_pareto, render_svg
from grouped_lm.report.series import Point, collect_points
from grouped_lm.report.style import GREY, STYLES, Label, label_ends, styles_by_head, write_title
from grouped_lm.reproduction.claims import Claims
from grouped_lm.reproduction.cost_rules import in_chunks
from grouped_lm.reproduction.curves import Job, curve_jobs, style
from grouped_lm.reproduction.evidence import Evidence, Row
from grouped_lm.reproduction.tables import main_settings, runs_in
from grouped_lm.reproduction.verdicts import Setting, setting_of
from grouped_lm.runs.query import MEMORY, SPEED

SIZE = (5.4, 3.9)
"""Inches: letters stay legible where the picture is as wide as a phone."""
SIZES = dict.fromkeys(("sizes", "fronts", "speed", "vocabularies"), (6.4, 4.2))
"""Of pictures with long names in them."""
KINDS = (
    ("weights_bytes", "weights"),
    ("gradients_bytes", "gradients"),
    ("optimizer_bytes", "optimizer"),
    ("body_bytes", "body"),
    ("head_bytes", "head"),
    ("temporary_bytes", "temporary"),
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture."""

    name: str
    section: str
    """Of the page."""
    title: str
    alt: str
    """What it shows, in words."""
    svg: str


def all_pictures(claims: Claims, evidence: Evidence) -> list[Picture]:
    """Return every picture that the evidence gives points for.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    jobs = [
        *curve_jobs(claims, evidence),
        *memory_jobs(evidence),
        *size_jobs(evidence),
        *front_jobs(claims, evidence),
        *decile_jobs(claims, evidence),
        *bench_jobs(claims, evidence),
    ]
    return [
        Picture(name=name, section=section, title=title, alt=alt, svg=render_svg(draw, SIZES.get(section, SIZE)))
        for name, section, title, alt, draw in jobs
    ]


def memory_jobs(evidence: Evidence) -> list[Job]:
    """Return memory by part for the largest body and batch that was watched, and the claim's ratios over batches."""
    jobs: list[Job] = []
    truth = [row for row in evidence["bench-memory"] if row.get("part") == "truth" and row.get("weights_bytes")]
    if truth:
        largest = max(truth, key=lambda row: (row["weights_bytes"], row["micro_batch_size"]))
        keys = ("model", "micro_batch_size", "block_size")
        rows = [row for row in truth if all(row[key] == largest[key] for key in keys)]
        shape = f"{largest['model']}, batch {largest['micro_batch_size']}, length {largest['block_size']}"
        parts = "; ".join(f"{row['head']} {row['measured_bytes'] / 2**20:,.0f} MiB" for row in rows)
        alt = f"Peak memory of a training step by part, {shape}: {parts}."
        jobs.append(("memory-by-part", "memory", "Memory by part", alt, partial(draw_parts, rows=rows, below=shape)))
    claims = [row for row in evidence["bench-memory"] if row.get("part") == "claim" and row.get("head") is None]
    if len({row["micro_batch_size"] for row in claims}) > 1:
        best = max(claims, key=lambda row: row["memory_ratio"])
        alt = (
            f"Peak memory of a step, dense over grouped, by batch, beside the paper's {best['claim_ratio']}x; the most "
            f"is {best['memory_ratio']:.2f}x with {best['model']}, {best['attention']} attention, batch "
            f"{best['micro_batch_size']}."
        )
        jobs.append(("memory-claim", "memory", "The memory claim", alt, partial(draw_claim, rows=claims)))
    return jobs


def draw_parts(axes: Any, rows: list[Row], below: str) -> None:
    """Draw a bar per head, of parts one behind the other."""
    lefts = [0.0] * len(rows)
    colors = [STYLES[i][0] for i in (0, 4, 2, 5, 1, 3)]
    for (key, label), color in zip(KINDS, colors, strict=True):
        widths = [(row.get(key) or 0) / 2**20 for row in rows]
        axes.barh(range(len(rows)), widths, left=lefts, color=color, label=label)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [row["head"] for row in rows])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel("MiB at the peak of a training step")
    axes.legend(ncols=3, fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.18))
    write_title(axes, "Memory by part", below)


def size_jobs(evidence: Evidence) -> list[Job]:
    """Return figures by group size from the setting with the most sizes."""
    sized: dict[Setting, list[Row]] = {}
    for row in evidence["runs"]:
        setting = setting_of(row)
        if setting is not None and row.get("head") == "grouped" and row.get("state") == "complete":
            sized.setdefault(setting, []).append(row)
    rows = max(sized.values(), key=lambda rows: len({row["group_size"] for row in rows}), default=[])
    rows = [row for row in rows if row.get("grouping") == "merge_rank"]
    sizes = sorted({row["group_size"] for row in rows})
    if len(sizes) < 3:
        return []
    points, jobs = collect_points(rows), list[Job]()
    for name, key, what in (
        ("size-memory", "memory/peak_head_gib", "Peak memory of the head"),
        ("size-perplexity", "val/perplexity", "Validation perplexity"),
        ("size-speed", SPEED[0], "Training speed"),
    ):
        known = [row for row in rows if row.get(key) is not None]
        if len({row["group_size"] for row in known}) > 2:
            best = (max if key == SPEED[0] else min)(known, key=lambda row: row[key])
            alt = f"{what} by group size, {sizes[0]:,} to {sizes[-1]:,}; best at S = {best['group_size']:,}."
            jobs.append(
                (name, "sizes", f"{what} by group size", alt, partial(draw_by_group_size, points=points, key=key))
            )
    return jobs


def front_jobs(claims: Claims, evidence: Evidence) -> list[Job]:
    """Return loss against speed and memory in the main setting."""
    setting = next(iter(main_settings(claims, evidence)), None)
    if setting is None:
        return []
    points = []
    for method in claims.methods.values():
        runs = runs_in(evidence, method, setting)
        if runs and method.key != "any_size":
            text = setting.data, setting.tokenizer
            name = method.name + (" (in chunks)" if any(map(in_chunks, runs.values())) else "")
            points.append(Point(name, method.match["head"], None, text, tuple(runs.values())))
    jobs: list[Job] = []
    for name, key, what in (("front-speed", SPEED, "speed"), ("front-memory", MEMORY, "memory")):
        known = [p for p in points if p.mean(key[0]) is not None and p.mean("val/loss") is not None]
        if len(known) > 1:
            form = "{:,.0f} tokens/s" if key is SPEED else "{:.3f} GiB"
            spots = "; ".join(
                f"{p.series} {p.mean('val/loss'):.3f} nats at {form.format(p.mean(key[0]))}" for p in known
            )
            alt, styles = f"Validation loss against {what}: {spots}.", styles_by_head([p.series for p in known])
            jobs.append(
                (
                    name,
                    "fronts",
                    f"Loss against {what}",
                    alt,
                    partial(draw_pareto, points=known, against=key, styles=styles),
                )
            )
    return jobs


def decile_jobs(claims: Claims, evidence: Evidence) -> list[Job]:
    """Return the loss over dense by training frequency."""
    setting = next(iter(main_settings(claims, evidence)), None)
    losses: dict[str, dict[str, float]] = {}
    for row in evidence["deciles"]:
        losses.setdefault(row["run"], {})[row["decile"]] = row["loss"]
    if setting is None:
        return []
    dense = runs_in(evidence, claims.methods["dense"], setting)
    gaps: dict[str, dict[str, list[float]]] = {}
    for name in ("paper", "ours"):
        for seed, run in runs_in(evidence, claims.methods[name], setting).items():
            base = losses.get(dense[seed]["run"], {}) if seed in dense else {}
            for decile, loss in losses.get(run["run"], {}).items():
                if decile in base:
                    gaps.setdefault(name, {}).setdefault(decile, []).append(loss - base[decile])
    if not gaps:
        return []
    parts = [
        f"{claims.methods[name].name} {statistics.fmean(next(iter(by.values()))):+.2f} nats in {next(iter(by))}, "
        f"{statistics.fmean(list(by.values())[-1]):+.2f} in {list(by)[-1]}"
        for name, by in gaps.items()
    ]
    alt = "Loss over dense by training frequency: " + "; ".join(parts) + "."
    draw = partial(draw_deciles, gaps=gaps, claims=claims, below=f"after {setting.describe()}")
    return [("deciles", "deciles", "Loss over dense by training frequency", alt, draw)]


def draw_deciles(axes: Any, gaps: dict[str, dict[str, list[float]]], claims: Claims, below: str) -> None:
    """Draw means over seeds with their range, most frequent tokens first."""
    names = list(dict.fromkeys(decile for by in gaps.values() for decile in by))
    labels = []
    for name, by in gaps.items():
        color, mark, dashes = style(name)
        places = [names.index(decile) for decile in by]
        means = [statistics.fmean(values) for values in by.values()]
        errors = [
            [mean - min(values) for mean, values in zip(means, by.values(), strict=True)],
            [max(values) - mean for mean, values in zip(means, by.values(), strict=True)],
        ]
        axes.errorbar(places, means, yerr=errors, color=color, marker=mark, linestyle=dashes, capsize=3)
        labels.append(Label(means[-1], claims.methods[name].name, color))
    axes.axhline(0, color=GREY, linewidth=1)
    short = ["new" if "never" in name else name.split("(")[0].removeprefix("decile ").strip() for name in names]
    axes.set_xticks(range(len(names)), short)
    axes.set_xlabel("tenth of the training text, most frequent first" + (", and new tokens" if "new" in short else ""))
    axes.set_ylabel("nats over dense")
    write_title(axes, "Loss over dense by training frequency", below)
    label_ends(axes, labels)


def bench_jobs(claims: Claims, evidence: Evidence) -> list[Job]:
    """Return whole steps by body, and steps over vocabularies."""
    jobs: list[Job] = []
    names = {method.bench: method.name for method in claims.methods.values() if method.bench}

    def named(table: str) -> list[Row]:
        return [row | {"head": names.get(row["head"], row["head"])} for row in evidence[table]]

    for model in dict.fromkeys(row["model"] for row in evidence["bench-steps"]):
        rows = [row for row in named("bench-steps") if row["model"] == model]
        if any(row["head"] == "no head" for row in rows) and len(rows) > 1:
            rates = "; ".join(f"{row['head']} {row['tokens_per_sec']:,.0f}" for row in rows)
            alt = f"Tokens per second of whole optimizer steps, {model}: {rates}."
            jobs.append(
                (f"steps-{model}", "speed", f"Whole steps, {model}", alt, partial(draw_rates, rows=rows, model=model))
            )
    steps = [row for row in named("bench-vocab") if row.get("part") == "step"]
    if len({row["vocab_size"] for row in steps}) > 1:
        for name, key, what in (("vocab-memory", "bytes", "Peak memory"), ("vocab-time", "ms", "Time")):
            keys = ("ms",) if key == "ms" else ("measured_bytes", "predicted_bytes")
            most: dict[str, int] = {}
            for row in sorted(steps, key=lambda row: row["vocab_size"]):
                if any(row.get(k) for k in keys):
                    most[row["head"]] = row["vocab_size"]
            ends = ", ".join(f"{head} up to {size:,} tokens" for head, size in most.items())
            alt = f"{what} of a step over vocabularies: {ends}; the figures are in the table."
            if not most:
                continue
            jobs.append(
                (
                    name,
                    "vocabularies",
                    f"{what} of a step over vocabularies",
                    alt,
                    partial(draw_by_vocab, rows=steps, key=key),
                )
            )
    return jobs
