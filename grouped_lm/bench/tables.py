"""The rows of a suite as tables for people: what is the same in all rows of a table stands in its title."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from grouped_lm.bench.results import Row
from grouped_lm.measure.live_bytes import KINDS
from grouped_lm.measure.memory import GIB

Column = tuple[str, str, str]
"""Label, key, format; a format of "bytes" prints MiB or GiB."""
TIMES = (("ms", "ms", "{:,.2f}"), ("quarter", "ms_q1", "{:,.2f}"), ("3 quarters", "ms_q3", "{:,.2f}"))
COLUMNS: dict[str, tuple[Column, ...]] = {
    "heads": (
        ("head", "head", "{}"),
        ("option", "option", "{}"),
        ("forward ms", "forward_ms", "{:,.2f}"),
        *TIMES,
        ("x dense", "speedup", "{:,.1f}"),
        ("peak", "peak_bytes", "bytes"),
        ("x less", "memory_ratio", "{:,.1f}"),
        ("floor", "floor_bytes", "bytes"),
        ("peak / floor", "peak_over_floor", "{:.2f}"),
        ("GEMM share", "gemm_share", "{:.0%}"),
        ("own params", "params_own", "{:,}"),
        ("loss error", "nll_error", "{:.1e}"),
        ("gradient error", "grad_error", "{:.1e}"),
        ("samples", "samples", "{}"),
    ),
    "steps": (
        ("head", "head", "{}"),
        ("option", "option", "{}"),
        *TIMES,
        ("tokens/s", "tokens_per_sec", "{:,.0f}"),
        ("of the cap", "share_of_cap", "{:.1%}"),
        ("x dense", "over_dense", "{:,.2f}"),
        ("x chunked", "over_best_chunked", "{:,.2f}"),
        ("x adaptive", "over_best_adaptive", "{:,.2f}"),
        ("FLOPs fewer", "flops_fewer_than_dense", "{:.2f}"),
        ("MFU", "mfu", "{:.0%}"),
        ("samples", "samples", "{}"),
    ),
}
COLUMNS["memory"] = (
    ("B", "micro_batch_size", "{:,}"),
    ("head", "head", "{}"),
    ("mode", "mode", "{}"),
    ("measured", "measured_bytes", "bytes"),
    ("predicted", "predicted_bytes", "bytes"),
    ("error", "prediction_error", "{:+.2%}"),
    *((kind, f"{kind}_bytes", "bytes") for kind in (*KINDS, "embedding")),
    ("peak in", "peak_module", "{}"),
    ("dense", "dense_bytes", "bytes"),
    ("grouped", "grouped_bytes", "bytes"),
    ("x less", "memory_ratio", "{:.2f}"),
    ("B of the claim", "batch_at_claim", "{:,}"),
    ("x at most", "ratio_limit", "{:.2f}"),
    ("FLOPs fewer", "flops_ratio", "{:.2f}"),
    ("at most", "flops_cap", "{:.2f}"),
)
COLUMNS["decode"] = (
    ("head", "head", "{}"),
    ("way", "way", "{}"),
    ("head ms", "head_ms", "{:,.3f}"),
    ("quarter", "head_ms_q1", "{:,.3f}"),
    ("3 quarters", "head_ms_q3", "{:,.3f}"),
    ("head, x dense", "head_speedup", "{:,.1f}"),
    ("token ms", "ms", "{:,.2f}"),
    ("token, x dense", "speedup", "{:,.2f}"),
    ("samples", "samples", "{}"),
)
COLUMNS["vocab"] = (
    ("head", "head", "{}"),
    ("measured", "measured_bytes", "bytes"),
    ("predicted", "predicted_bytes", "bytes"),
    ("body's weights x 16", "state_bytes", "bytes"),
    ("ms", "ms", "{:,.1f}"),
    ("tokens/s", "tokens_per_sec", "{:,.0f}"),
    ("of the cap", "share_of_cap", "{:.1%}"),
    ("x dense", "over_dense", "{:,.2f}"),
    ("entropy", "entropy_nats", "{:.3f}"),
    ("loss", "loss_nats", "{:.3f}"),
    ("excess", "excess_nats", "{:+.4f}"),
    ("+-", "excess_stderr", "{:.4f}"),
    ("lr", "lr", "{:g}"),
)
SHAPE = (
    "device",
    "dtype",
    "part",
    "model",
    "attention",
    "language",
    "n_tokens",
    "n_embd",
    "vocab_size",
    "block_size",
    "batch_size",
)
"""What tables are split by."""


def suite_tables(suite: str, rows: Sequence[Row]) -> list[Table]:
    """Return a table per shape."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = ", ".join(f"{key} {row[key]}" for key in SHAPE if row.get(key) is not None)
        groups.setdefault(title, []).append(row)
    return [make_table(title, group, COLUMNS[suite]) for title, group in groups.items()]


def make_table(title: str, rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """Return rows as a table; columns that no row fills are left out."""
    table = Table(title=title, title_justify="left")
    filled = [column for column in columns if any(row.get(column[1]) not in (None, "") for row in rows)]
    for label, _, form in filled:
        table.add_column(label, justify="left" if form == "{}" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(key), form) for _, key, form in filled))
    return table


def cell(value: Any, form: str) -> str:
    """Return a figure as a table shows it, "" where there is none."""
    if value is None:
        return ""
    if form == "bytes":
        return f"{value / GIB:,.2f} GiB" if value >= GIB else f"{value / 2**20:,.1f} MiB"
    return form.format(value)
