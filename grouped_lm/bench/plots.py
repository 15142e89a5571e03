"""Figures of `gvc bench`: bars by competitor and lines over sizes, with floors and caps as dashed lines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grouped_lm.report.style import (
    GREY,
    LIMIT_STYLE,
    STYLES,
    Draw,
    Line,
    Style,
    draw_lines,
    finish,
    save_figure,
    set_scale,
    styles_by_head,
)
from grouped_lm.system.tables import GIB, MIB, Row, group_rows


def write_bench_plots(suite: str, rows: Sequence[Row], folder: Path, suffix: str = "") -> list[Path]:
    """Write the plots of a suite as `bench-SUITE-...`, with names that end in `suffix`, and return the files.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    return [
        path
        for name, draw in suite_plots(suite, rows).items()
        for path in save_figure(folder / f"bench-{name}{suffix}", draw)
    ]


def suite_plots(suite: str, rows: Sequence[Row]) -> dict[str, Draw]:
    """Return the functions that draw the plots of a suite, by file name."""
    plots: dict[str, Draw] = {}

    if suite == "heads":
        return heads_plots(rows)
    if suite == "steps":
        for (model,), own in group_rows(rows, ("model",)).items():
            plots[f"steps-{model}"] = partial(draw_rates, rows=own, model=model)
    elif suite == "memory":
        claims = [row for row in rows if row["part"] == "claim" and row.get("head") is None]
        if len({row["micro_batch_size"] for row in claims}) > 1:
            plots["memory-claim"] = partial(draw_claim, rows=claims)
    elif suite == "decode":
        for (batch, way), own in group_rows(rows, ("batch_size", "way")).items():
            plots[f"decode-{way}-b{batch}"] = partial(draw_decode, rows=own, where=f"{way}, batch {batch}")
    elif suite == "vocab":
        steps = [row for row in rows if row["part"] == "step"]
        if len({row["vocab_size"] for row in steps}) > 1:
            plots["vocab-memory"] = partial(draw_by_vocab, rows=steps, key="bytes")
            if any(row.get("ms") for row in steps):
                plots["vocab-time"] = partial(draw_by_vocab, rows=steps, key="ms")
    return plots


def heads_plots(rows: Sequence[Row]) -> dict[str, Draw]:
    """Return the functions that draw time and memory of heads alone, by file name. The first V is not in the names."""
    plots: dict[str, Draw] = {}
    for (n, d, v), own in group_rows(rows, ("n_tokens", "n_embd", "vocab_size")).items():
        name, where = f"n{n}-d{d}", f"N {n:,}, D {d}"
        if f"heads-time-{name}" in plots:
            name, where = f"{name}-v{v}", f"{where}, V {v:,}"
        plots[f"heads-time-{name}"] = partial(draw_times, rows=own, where=where)
        checked = [row for row in own if row.get("peak_bytes")]  # others were timed alone
        if checked:
            plots[f"heads-memory-{name}"] = partial(draw_memory, rows=checked, where=where)
    return plots


def draw_claim(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the predicted memory of dense over grouped against the batch, and the ratio of the paper."""
    lines = []
    for number, ((model, attention), own) in enumerate(group_rows(rows, ("model", "attention")).items()):
        look = STYLES[number // 2 % len(STYLES)]
        style = Style(look.color, look.marker, "-" if attention == "fused" else ":")
        xs, ys = [row["micro_batch_size"] for row in own], [row["memory_ratio"] for row in own]
        lines.append(Line(f"{model}, {attention}", xs, ys, style))
    draw_lines(axes, lines)
    claim = rows[0]["claim_ratio"]
    axes.axhline(claim, color="black", linestyle="--", linewidth=1.4)
    set_scale(axes.yaxis, [row["memory_ratio"] for row in rows], from_zero=True)
    axes.set_xlabel(f"batch, context {rows[0]['block_size']}")
    axes.set_ylabel("peak of a step, dense over grouped")
    finish(axes, "The memory claim, predicted", f"dashed: {claim}x; dotted lines: unfused attention", lines)


def draw_by_vocab(axes: Any, rows: Sequence[Row], key: str) -> None:
    """Draw step time or peak memory against V. Dashed: the step without a head, or 16 bytes per weight."""
    series: dict[str, set[tuple[int, float]]] = {}
    for row in rows:
        value = row.get("ms") if key == "ms" else row.get("measured_bytes") or row.get("predicted_bytes")
        if value is not None:
            series.setdefault(row["head"], set()).add((row["vocab_size"], value / (1 if key == "ms" else GIB)))
        if key == "bytes" and row.get("state_bytes") is not None:
            series.setdefault("weights x 16", set()).add((row["vocab_size"], row["state_bytes"] / GIB))
    styles = styles_by_head(list(series)) | dict.fromkeys(("no head", "weights x 16"), LIMIT_STYLE)
    ordered = {name: sorted(points) for name, points in series.items()}
    lines = [Line(name, [x for x, _ in own], [y for _, y in own], styles[name]) for name, own in ordered.items()]
    draw_lines(axes, lines)
    sizes = sorted({x for line in lines for x in line.xs})
    axes.set_xscale("log")
    shown = [size for size, smaller in zip(sizes, [0, *sizes], strict=False) if size > 1.5 * smaller]
    axes.set_xticks(shown, [f"{size / 1e6:g}M" if size >= 1e6 else f"{size / 1e3:.0f}K" for size in shown])
    axes.minorticks_off()
    set_scale(axes.yaxis, [y for line in lines for y in line.ys])
    axes.set_xlabel("vocabulary V")
    axes.set_ylabel("ms per step" if key == "ms" else "peak of a step (GiB)")
    what, note = ("Time", "") if key == "ms" else ("Peak memory", ", predicted where it was not run")
    shape = f"{rows[0]['model']}, {rows[0]['micro_batch_size']} x {rows[0]['block_size']} tokens"
    finish(axes, f"{what} of a step over vocabularies", f"{shape}{note}", lines)


def _bars(axes: Any, rows: Sequence[Row], values: Sequence[float], label: str) -> None:
    """Draw one bar per row, with the name of its head or run, in the colour of the head."""
    names = [row["head"] for row in rows]
    heads = [f"{row['run_head']} {row['head']}" if row.get("run_head") else row["head"] for row in rows]
    styles = styles_by_head(heads)
    axes.barh(range(len(names)), values, color=[styles[head].color for head in heads])
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) > 8 else 10)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel(label)


def draw_decode(axes: Any, rows: Sequence[Row], where: str) -> None:
    """Draw the milliseconds per token of the head."""
    values = [row["head_ms"] for row in rows]
    _bars(axes, rows, values, "ms per token, the head alone")
    set_scale(axes.xaxis, values, from_zero=True)
    finish(axes, "Decoding", where)


def draw_times(axes: Any, rows: Sequence[Row], where: str) -> None:
    """Draw medians and quartiles of forward and backward."""
    values = [row["ms"] for row in rows]
    _bars(axes, rows, values, "ms, forward and backward; quartiles as whiskers")
    set_scale(axes.xaxis, values, from_zero=True)
    errors = [[r["ms"] - r["ms_q1"] for r in rows], [r["ms_q3"] - r["ms"] for r in rows]]
    axes.errorbar(values, range(len(rows)), xerr=errors, fmt="none", ecolor=GREY, capsize=2)
    finish(axes, "Time of the head alone", where)


def draw_memory(axes: Any, rows: Sequence[Row], where: str) -> None:
    """Draw the peak and the floor of each head, both without a tied table and its gradient."""
    values = [(row["peak_bytes"] - row["tied_table_bytes"]) / MIB for row in rows]
    floors = [row["floor_bytes"] / MIB for row in rows]
    _bars(axes, rows, values, "peak MiB, without a tied table; dashed: the floor")
    set_scale(axes.xaxis, [*values, *floors], from_zero=True)
    for place, floor in enumerate(floors):
        axes.plot([floor, floor], [place - 0.4, place + 0.4], color="black", linestyle="--", linewidth=1.4)
    finish(axes, "Memory of the head alone", where)


def draw_rates(axes: Any, rows: Sequence[Row], model: str) -> None:
    """Draw tokens per second of whole steps, and of the step without any head."""
    heads = [row for row in rows if row["head"] != "no head"]
    cap = next(row for row in rows if row["head"] == "no head")["tokens_per_sec"]
    values = [row["tokens_per_sec"] for row in heads]
    _bars(axes, heads, values, "tokens per second; dashed: without any head")
    axes.set_xlim(0, max([*values, cap]) * 1.1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.axvline(cap, color="black", linestyle="--", linewidth=1.4)
    finish(axes, "Whole optimizer steps", model)
