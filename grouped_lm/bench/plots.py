"""Pictures of `gvc bench`: bars by implementation, with the floor or the cap as a dashed line."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grouped_lm.report.figures import save_figure
from grouped_lm.report.style import (
    GREY,
    STYLES,
    Label,
    PlotLibraryError,
    label_ends,
    set_scale,
    styles_by_head,
    write_title,
)

__all__ = ["PlotLibraryError", "write_bench_plots"]

Row = dict[str, Any]


def write_bench_plots(suite: str, rows: Sequence[Row], folder: Path, suffix: str = "") -> list[Path]:
    """Write the suite's plots as `bench-SUITE-...`, SVG and PNG, names ending in `suffix`, and return the files.

    Raises:
        PlotLibraryError: matplotlib is not installed.
    """
    return [
        path for name, draw in plot_jobs(suite, rows) for path in save_figure(folder / f"bench-{name}{suffix}", draw)
    ]


def plot_jobs(suite: str, rows: Sequence[Row]) -> list[tuple[str, Callable[[Any], None]]]:
    """Return file names and what draws them."""
    jobs: list[tuple[str, Callable[[Any], None]]] = []
    if suite == "heads":
        for n, d in dict.fromkeys((row["n_tokens"], row["n_embd"]) for row in rows):
            shown = [row for row in rows if (row["n_tokens"], row["n_embd"]) == (n, d)]
            jobs.append((f"heads-time-n{n}-d{d}", partial(draw_times, rows=shown, where=f"N {n:,}, D {d}")))
            jobs.append((f"heads-memory-n{n}-d{d}", partial(draw_memory, rows=shown, where=f"N {n:,}, D {d}")))
    elif suite == "steps":
        for model in dict.fromkeys(row["model"] for row in rows):
            shown = [row for row in rows if row["model"] == model]
            jobs.append((f"steps-{model}", partial(draw_rates, rows=shown, model=model)))
    elif suite == "memory":
        claims = [row for row in rows if row["part"] == "claim" and row.get("head") is None]
        if len({row["micro_batch_size"] for row in claims}) > 1:
            jobs.append(("memory-claim", partial(draw_claim, rows=claims)))
    elif suite == "decode":
        for batch, way in dict.fromkeys((row["batch_size"], row["way"]) for row in rows):
            shown = [row for row in rows if (row["batch_size"], row["way"]) == (batch, way)]
            jobs.append((f"decode-{way}-b{batch}", partial(draw_decode, rows=shown, where=f"{way}, batch {batch}")))
    elif suite == "vocab":
        steps = [row for row in rows if row["part"] == "step"]
        if len({row["vocab_size"] for row in steps}) > 1:
            jobs.append(("vocab-memory", partial(draw_by_vocab, rows=steps, key="bytes")))
            jobs.append(("vocab-time", partial(draw_by_vocab, rows=steps, key="ms")))
    return jobs


def draw_claim(axes: Any, rows: Sequence[Row]) -> None:
    """Draw predicted dense over grouped against B, and the paper's ratio."""
    labels = []
    lines = list(dict.fromkeys((row["model"], row["attention"]) for row in rows))
    for number, (model, attention) in enumerate(lines):
        line = [row for row in rows if (row["model"], row["attention"]) == (model, attention)]
        color, marker, _ = STYLES[number // 2 % len(STYLES)]
        dashes = "-" if attention == "fused" else ":"
        ys = [row["memory_ratio"] for row in line]
        axes.plot([row["micro_batch_size"] for row in line], ys, color=color, marker=marker, linestyle=dashes)
        labels.append(Label(ys[-1], f"{model}, {attention}", color))
    axes.axhline(rows[0]["claim_ratio"], color="black", linestyle="--", linewidth=1.4)
    set_scale(axes.yaxis, [row["memory_ratio"] for row in rows], from_zero=True)
    axes.set_xlabel(f"batch, context {rows[0]['block_size']}")
    axes.set_ylabel("peak of a step, dense over grouped")
    write_title(
        axes, "The memory claim, predicted", f"dashed: {rows[0]['claim_ratio']}x; dotted lines: unfused attention"
    )
    label_ends(axes, labels)


def draw_decode(axes: Any, rows: Sequence[Row], where: str) -> None:
    """Draw the head's milliseconds per token."""
    _bars(axes, [row["head"] for row in rows], [row["head_ms"] for row in rows], "ms per token, the head alone")
    write_title(axes, "Decoding", where)


def draw_by_vocab(axes: Any, rows: Sequence[Row], key: str) -> None:
    """Draw step time, or peak memory, against V; the dashed line is the step without a head, or 16 bytes a weight."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        value = row.get("ms") if key == "ms" else row.get("measured_bytes") or row.get("predicted_bytes")
        if value is not None:
            series.setdefault(row["head"], []).append((row["vocab_size"], value / (1 if key == "ms" else 2**30)))
        if key == "bytes" and row.get("state_bytes") is not None:
            series.setdefault("weights x 16", []).append((row["vocab_size"], row["state_bytes"] / 2**30))
    labels = []
    styles = styles_by_head(list(series)) | dict.fromkeys(("no head", "weights x 16"), ("black", None, "--"))
    for name, points in series.items():
        xs, ys = zip(*sorted(set(points)), strict=True)
        style = styles[name]
        axes.plot(xs, ys, color=style[0], marker=style[1], linestyle=style[2])
        labels.append(Label(ys[-1], name, style[0]))
    sizes = sorted({x for points in series.values() for x, _ in points})
    axes.set_xscale("log")
    shown = [size for size, one_before in zip(sizes, [0, *sizes], strict=False) if size > 1.5 * one_before]
    axes.set_xticks(shown, [f"{size / 1e6:g}M" if size >= 1e6 else f"{size / 1e3:.0f}K" for size in shown])
    axes.minorticks_off()
    set_scale(axes.yaxis, [y for points in series.values() for _, y in points])
    axes.set_xlabel("vocabulary V")
    axes.set_ylabel("ms per step" if key == "ms" else "peak of a step (GiB)")
    where = "" if key == "ms" else ", predicted where it was not run"
    shape = f"{rows[0]['model']}, {rows[0]['micro_batch_size']} x {rows[0]['block_size']} tokens"
    write_title(axes, f"{'Time' if key == 'ms' else 'Peak memory'} of a step over vocabularies", f"{shape}{where}")
    label_ends(axes, labels)


def _bars(
    axes: Any, names: Sequence[str], values: Sequence[float], label: str, also: Sequence[float] = (), log: bool = True
) -> None:
    """Draw a bar each; `also` are figures that have to be in sight; `log` allows for an axis that is not linear."""
    places, styles = range(len(names)), styles_by_head(list(names))
    axes.barh(places, values, color=[styles[name][0] for name in names])
    axes.set_yticks(places, names, fontsize=8 if len(names) > 8 else 10)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    if log:
        set_scale(axes.xaxis, [*values, *also], from_zero=True)
    else:
        axes.set_xlim(0, max([*values, *also]) * 1.1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(label)


def draw_times(axes: Any, rows: Sequence[Row], where: str) -> None:
    """Draw medians and quartiles of forward and backward."""
    values = [row["ms"] for row in rows]
    _bars(axes, [row["head"] for row in rows], values, "ms, forward and backward; quartiles as whiskers")
    errors = [[r["ms"] - r["ms_q1"] for r in rows], [r["ms_q3"] - r["ms"] for r in rows]]
    axes.errorbar(values, range(len(rows)), xerr=errors, fmt="none", ecolor=GREY, capsize=2)
    write_title(axes, "Time of the head alone", where)


def draw_memory(axes: Any, rows: Sequence[Row], where: str) -> None:
    """Draw peaks and each head's floor; a tied table and its gradient are left out of both."""
    values = [(row["peak_bytes"] - row["tied_table_bytes"]) / 2**20 for row in rows]
    floors = [row["floor_bytes"] / 2**20 for row in rows]
    _bars(axes, [row["head"] for row in rows], values, "peak MiB, without a tied table; dashed: the floor", floors)
    for place, floor in enumerate(floors):
        axes.plot([floor, floor], [place - 0.4, place + 0.4], color="black", linestyle="--", linewidth=1.4)
    write_title(axes, "Memory of the head alone", where)


def draw_rates(axes: Any, rows: Sequence[Row], model: str) -> None:
    """Draw tokens per second of whole steps, and the step without any head."""
    heads = [row for row in rows if row["head"] != "no head"]
    cap = next(row for row in rows if row["head"] == "no head")
    label = "tokens per second; dashed: without any head"
    _bars(
        axes,
        [r["head"] for r in heads],
        [r["tokens_per_sec"] for r in heads],
        label,
        [cap["tokens_per_sec"]],
        log=False,
    )
    axes.axvline(cap["tokens_per_sec"], color="black", linestyle="--", linewidth=1.4)
    write_title(axes, "Whole optimizer steps", model)
