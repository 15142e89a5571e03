"""`gvc plot`: the loss of runs against tokens, minutes and memory."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grouped_lm.errors import RunFolderError
from grouped_lm.report.figures import AXES
from grouped_lm.report.series import collect_points, describe, names_of_runs
from grouped_lm.report.style import (
    Draw,
    Line,
    draw_lines,
    finish,
    label_points,
    save_figure,
    set_scale,
    styles_by_head,
)
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.query import MEMORY, Row
from grouped_lm.runs.table import whole_rows
from grouped_lm.system.phases import say

TOKENS, MINUTES = "trainer/tokens", "minutes"
LABELS = {TOKENS: "tokens", MINUTES: "minutes of training"}
NATS, BITS = "loss (nats per token)", "loss (bits per byte)"
NO_BITS = "tokenizers differ, and it has no validation yet, which says how many bytes its tokens have"
START = 0.1
"""Share of a run whose losses may lie above the figure: the first ones would hide all differences."""


@dataclass(frozen=True)
class Curve:
    """The losses of one run, each row with tokens, minutes, and `train` or `valid`."""

    name: str
    rows: list[Row]
    memory_gib: float | None = None

    def points(self, x: str, loss: str) -> tuple[list[float], list[float]]:
        """Return the x and the loss of every row that has both."""
        known = [row for row in self.rows if row.get(x) is not None and row.get(loss) is not None]
        return [row[x] for row in known], [row[loss] for row in known]

    @property
    def is_empty(self) -> bool:
        """Whether no loss of it can be drawn."""
        return not any(self.points(TOKENS, loss)[0] for loss in ("valid", "train"))

    @property
    def loss(self) -> str:
        """The loss that is drawn as a line: `valid` if it was measured several times, or is the only one."""
        valid, train = (len(self.points(TOKENS, loss)[0]) for loss in ("valid", "train"))
        return "valid" if valid > 1 or not train else "train"


def read_curve(row: Row, name: str, in_bits: bool) -> Curve:
    """Return the curve of the run in a row of `collect_runs`.

    Minutes are those of training steps, from the measured speed. Bits per byte of the training loss are those of its
    tokens at the validation text's bytes per token.
    """
    file = RunFolder(Path(row["run"])).metrics
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    logged = [found for found in whole_rows(lines) if isinstance(found.get(TOKENS), int | float)]
    per_nat = next((m["val/bits_per_byte"] / m["val/loss"] for m in logged if m.get("val/loss")), None)
    factor = per_nat if in_bits else 1.0
    rate = next((m["throughput/tokens_per_sec"] for m in logged if m.get("throughput/tokens_per_sec")), None)
    rows, minutes, tokens = [], 0.0, 0
    for metrics in logged:
        rate = metrics.get("throughput/tokens_per_sec") or rate
        minutes += (metrics[TOKENS] - tokens) / rate / 60 if rate else 0.0
        tokens = metrics[TOKENS]
        losses = {"train": metrics.get("train/loss"), "valid": metrics.get("val/loss")}
        scaled = {key: loss * factor for key, loss in losses.items() if loss is not None and factor is not None}
        rows.append({TOKENS: tokens, MINUTES: minutes if rate else None} | scaled)
    return Curve(name, rows, row.get(MEMORY[0]))


def write_curves(rows: list[Row], folder: Path) -> list[Path]:
    """Draw the losses of runs against tokens, minutes and memory, and return the files that were written.

    Args:
        rows: as `collect_runs` returns them, of runs with at least one logged loss.
        folder: is made.

    Raises:
        PlotLibraryError: matplotlib is not installed.
        RunFolderError: no run has rows in its metrics.jsonl, or of several tokenizers none has a validation.
    """
    in_bits = len({row["tokenizer"] for row in rows}) > 1
    curves = [read_curve(row, name, in_bits) for row, name in zip(rows, names_of_runs(rows), strict=True)]
    for row, curve in zip(rows, curves, strict=True):
        if not curve.rows:
            say(f"gvc: warning: {row['run']} is left out: its metrics.jsonl is missing or has no rows")
        elif curve.is_empty:
            say(f"gvc: warning: {row['run']} is left out: {NO_BITS if in_bits else 'its metrics.jsonl has no loss'}")
    known = any(curve.rows for curve in curves)
    rows = [row for row, curve in zip(rows, curves, strict=True) if not curve.is_empty]
    curves = [curve for curve in curves if not curve.is_empty]
    if not curves:
        lacks = "a loss that can be drawn" if known else "rows in its metrics.jsonl"
        raise RunFolderError(f"no run has {lacks}: name runs that have")
    below, label = describe_runs(rows), BITS if in_bits else NATS
    plots: dict[str, Draw] = {}
    for x, name in ((TOKENS, "loss-tokens"), (MINUTES, "loss-minutes")):
        if drawn := [curve for curve in curves if curve.points(x, curve.loss)[0]]:
            plots[name] = partial(draw_curves, curves=drawn, x=x, label=label, below=below)
    if measured := [curve for curve in curves if curve.memory_gib and curve.points(TOKENS, "valid")[0]]:
        plots["loss-memory"] = partial(draw_memory, curves=measured, label=label, below=below)
    return [path for name, draw in plots.items() for path in save_figure(folder / name, draw)]


def describe_runs(rows: list[Row]) -> str:
    """Return the settings that all runs share, whatever their states."""
    return describe(collect_points([row | {"state": "complete"} for row in rows]))


def draw_curves(axes: Any, curves: list[Curve], x: str, label: str, below: str) -> None:
    """Draw a line per run: the validation loss if it was measured several times, else the training loss."""
    styles, lines = styles_by_head([curve.name for curve in curves]), []
    for curve in curves:
        style = styles[curve.name]
        if curve.loss == "valid":  # the training loss, faint
            axes.plot(*curve.points(x, "train"), color=style.color, linewidth=0.8, alpha=0.35)
        else:
            style = style._replace(marker=None)
            axes.plot(*curve.points(x, "valid"), color=style.color, marker="o", linestyle="none", markersize=6)
        lines.append(Line(curve.name, *curve.points(x, curve.loss), style))
    draw_lines(axes, lines)
    values = [y for curve in curves for y in losses_after_start(curve, x)]
    pad = 0.06 * (max(values) - min(values)) or 0.1
    axes.set_ylim(min(values) - pad, max(values) + pad)
    axes.set_xlim(0, 1.02 * max(line.xs[-1] for line in lines))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if x == TOKENS else f"{value:g}")
    axes.set_xlabel(LABELS[x])
    axes.set_ylabel(label)
    kinds = {curve.loss for curve in curves}
    title = {"valid": "Validation loss", "train": "Training loss, validation as dots"}
    finish(axes, title[kinds.pop()] if len(kinds) == 1 else "Training and validation loss", below, lines)


def losses_after_start(curve: Curve, x: str) -> list[float]:
    """Return the losses of a curve without those of the first `START` of the run, if others are left."""
    ends = [curve.points(x, loss) for loss in ("train", "valid")]
    last = max(value for xs, _ in ends for value in xs)
    late = [y for xs, ys in ends for value, y in zip(xs, ys, strict=True) if value >= START * last]
    return late or [y for _, ys in ends for y in ys]


def draw_memory(axes: Any, curves: list[Curve], label: str, below: str) -> None:
    """Draw the last validation loss of every run against its peak memory."""
    styles, names = styles_by_head([curve.name for curve in curves]), []
    for curve in curves:
        style, loss = styles[curve.name], curve.points(TOKENS, "valid")[1][-1]
        axes.plot([curve.memory_gib], [loss], color=style.color, marker=style.marker, linestyle="none", markersize=7)
        names.append((curve.memory_gib or 0.0, loss, curve.name, style.color))
    axes.margins(0.2)
    set_scale(axes.xaxis, [x for x, *_ in names], from_zero=True)
    axes.set_xlabel(AXES[MEMORY[0]])
    axes.set_ylabel(f"validation {label}")
    finish(axes, "Loss against memory: best is down left", below)
    label_points(axes, names)
