"""The pictures of the report, each with what it shows in words. A picture without data is left out."""

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

from grouped_lm.bench.plots import draw_by_vocab, draw_claim, draw_rates
from grouped_lm.report.figures import BY_SIZE, HEAD_MEMORY, PERPLEXITY, draw_by_group_size, draw_pareto
from grouped_lm.report.series import Point, collect_points
from grouped_lm.report.style import GREY, STYLES, Line, draw_lines, finish
from grouped_lm.reproduction.claims import Claims
from grouped_lm.reproduction.cost_rules import in_chunks
from grouped_lm.reproduction.curves import Picture, curve_pictures, style
from grouped_lm.reproduction.evidence import Evidence, Row
from grouped_lm.reproduction.tables import main_settings, runs_in
from grouped_lm.reproduction.verdicts import Setting, setting_of
from grouped_lm.runs.query import MEMORY, QUALITY, SPEED
from grouped_lm.system.tables import MIB

PARTS = ("weights", "gradients", "optimizer", "body", "head", "temporary")


def all_pictures(claims: Claims, evidence: Evidence) -> list[Picture]:
    """Return every picture for which the evidence has points."""
    return [
        *curve_pictures(claims, evidence),
        *memory_pictures(evidence),
        *size_pictures(evidence),
        *front_pictures(claims, evidence),
        *decile_pictures(claims, evidence),
        *bench_pictures(claims, evidence),
    ]


def memory_pictures(evidence: Evidence) -> Iterator[Picture]:
    """Yield memory by part for the largest body and batch, and the claimed ratio over batches."""
    measured = [row for row in evidence["bench-memory"] if row.get("part") == "truth" and row.get("weights_bytes")]
    if measured:
        largest = max(measured, key=lambda row: (row["weights_bytes"], row["micro_batch_size"]))
        keys = ("model", "micro_batch_size", "block_size")
        rows = [row for row in measured if all(row[key] == largest[key] for key in keys)]
        shape = f"{largest['model']}, batch {largest['micro_batch_size']}, length {largest['block_size']}"
        parts = "; ".join(f"{row['head']} {row['measured_bytes'] / MIB:,.0f} MiB" for row in rows)
        alt = f"Peak memory of a training step by part, {shape}: {parts}."
        yield Picture("memory-by-part", "memory", alt, partial(draw_parts, rows=rows, below=shape))
    claims = [row for row in evidence["bench-memory"] if row.get("part") == "claim" and row.get("head") is None]
    if len({row["micro_batch_size"] for row in claims}) > 1:
        best = max(claims, key=lambda row: row["memory_ratio"])
        alt = (
            f"Peak memory of a step, dense over grouped, by batch, beside the paper's {best['claim_ratio']}x; the most "
            f"is {best['memory_ratio']:.2f}x with {best['model']}, {best['attention']} attention, batch "
            f"{best['micro_batch_size']}."
        )
        yield Picture("memory-claim", "memory", alt, partial(draw_claim, rows=claims))


def draw_parts(axes: Any, rows: list[Row], below: str) -> None:
    """Draw one bar per head, made of its parts."""
    lefts = [0.0] * len(rows)
    for part, number in zip(PARTS, (0, 4, 2, 5, 1, 3), strict=True):
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
    settings: dict[Setting, list[Row]] = {}
    for row in evidence["runs"]:
        setting = setting_of(row)
        if setting is not None and row.get("head") == "grouped" and row.get("state") == "complete":
            settings.setdefault(setting, []).append(row)
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
            first, *_, last = by_decile
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

    for model in dict.fromkeys(row["model"] for row in evidence["bench-steps"]):
        rows = [row for row in named("bench-steps") if row["model"] == model]
        if any(row["head"] == "no head" for row in rows) and len(rows) > 1:
            rates = "; ".join(f"{row['head']} {row['tokens_per_sec']:,.0f}" for row in rows)
            alt = f"Tokens per second of whole optimizer steps, {model}: {rates}."
            yield Picture(f"steps-{model}", "speed", alt, partial(draw_rates, rows=rows, model=model))
    steps = sorted((row for row in named("bench-vocab") if row.get("part") == "step"), key=lambda r: r["vocab_size"])
    if len({row["vocab_size"] for row in steps}) < 2:
        return
    for name, key, what, columns in (
        ("vocab-memory", "bytes", "Peak memory", ("measured_bytes", "predicted_bytes")),
        ("vocab-time", "ms", "Time", ("ms",)),
    ):
        largest = {row["head"]: row["vocab_size"] for row in steps if any(row.get(column) for column in columns)}
        if largest:
            ends = ", ".join(f"{head} up to {size:,} tokens" for head, size in largest.items())
            alt = f"{what} of a step over vocabularies: {ends}; the figures are in the table."
            yield Picture(name, "vocabularies", alt, partial(draw_by_vocab, rows=steps, key=key))
