"""A table of the report: rows of raw figures and how a cell is shown; and those that show evidence as it is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from grouped_lm.reproduction.evidence import Evidence, Row

Column = tuple[str, str, str]
"""Label, key, format; "bytes" shows MiB or GiB."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a title."""

    name: str
    """Of its CSV."""
    title: str
    columns: tuple[Column, ...]
    rows: list[Row]
    note: str = ""
    """Said under the title."""

    def cells(self) -> list[list[str]]:
        """Return what is shown, row by row; columns that no row fills are left out."""
        return [[show(row.get(key), form) for _, key, form in self.filled()] for row in self.rows]

    def filled(self) -> list[Column]:
        """Return the columns that some row fills."""
        return [column for column in self.columns if any(row.get(column[1]) not in (None, "") for row in self.rows)]


def show(value: Any, form: str) -> str:
    """Return a figure as a table shows it, "-" where there is none."""
    if value is None or value == "":
        return "-"
    if form == "bytes":
        return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"
    return form.format(value)


@dataclass(frozen=True)
class Plain:
    """A table that shows rows of the evidence as they are."""

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    keep: Callable[[Row], bool] = field(default=lambda row: True)
    note: str = ""

    def build(self, evidence: Evidence) -> Table:
        """Return the rows."""
        rows = [row for row in evidence[self.source] if self.keep(row)]
        return Table(name=self.name, title=self.title, columns=self.columns, rows=rows, note=self.note)


PLAIN = (
    Plain(
        "memory-parts",
        "Memory of a step by what it is for",
        "bench-memory",
        (
            ("body", "model", "{}"),
            ("batch", "micro_batch_size", "{:,}"),
            ("length", "block_size", "{:,}"),
            ("head", "head", "{}"),
            ("measured", "measured_bytes", "bytes"),
            ("prediction off by", "prediction_error", "{:+.2%}"),
            ("weights", "weights_bytes", "bytes"),
            ("gradients", "gradients_bytes", "bytes"),
            ("optimizer", "optimizer_bytes", "bytes"),
            ("body", "body_bytes", "bytes"),
            ("head's own", "head_bytes", "bytes"),
            ("temporary", "temporary_bytes", "bytes"),
        ),
        lambda row: row.get("part") == "truth",
        "Real steps, allocator events.",
    ),
    Plain(
        "memory-grid",
        "Memory over batch and length",
        "bench-memory",
        (
            ("body", "model", "{}"),
            ("mode", "mode", "{}"),
            ("batch", "micro_batch_size", "{:,}"),
            ("length", "block_size", "{:,}"),
            ("head", "head", "{}"),
            ("predicted", "predicted_bytes", "bytes"),
            ("measured", "measured_bytes", "bytes"),
        ),
        lambda row: row.get("part") == "grid",
    ),
    Plain(
        "speed",
        "Whole optimizer steps, taking turns",
        "bench-steps",
        (
            ("body", "model", "{}"),
            ("head", "head", "{}"),
            ("option", "option", "{}"),
            ("ms", "ms", "{:,.1f}"),
            ("quarter", "ms_q1", "{:,.1f}"),
            ("3 quarters", "ms_q3", "{:,.1f}"),
            ("tokens/s", "tokens_per_sec", "{:,.0f}"),
            ("x dense", "over_dense", "{:.2f}"),
            ("x dense in chunks", "over_best_chunked", "{:.2f}"),
            ("of the cap", "share_of_cap", "{:.0%}"),
        ),
        note="The cap is the same step without any head.",
    ),
    Plain(
        "vocabularies",
        "Steps over vocabularies",
        "bench-vocab",
        (
            ("V", "vocab_size", "{:,}"),
            ("head", "head", "{}"),
            ("measured", "measured_bytes", "bytes"),
            ("predicted", "predicted_bytes", "bytes"),
            ("ms", "ms", "{:,.1f}"),
            ("x dense", "over_dense", "{:.1f}"),
        ),
        lambda row: row.get("part") == "step",
    ),
    Plain(
        "order",
        "Are ids sorted by frequency",
        "order",
        (
            ("text", "data", "{}"),
            ("ids that occur", "ids", "{:,}"),
            ("tokens", "tokens", "{:,}"),
            ("rank correlation", "rank_correlation", "{:.3f}"),
            ("from", "low", "{:.3f}"),
            ("to", "high", "{:.3f}"),
            ("tokens in the first 2,048 ids", "share_of_first", "{:.1%}"),
            ("in the 2,048 most frequent", "share_of_top", "{:.1%}"),
        ),
    ),
    Plain(
        "steps",
        "Steps",
        "steps",
        (
            ("step", "step", "{}"),
            ("for", "about", "{}"),
            ("state", "state", "{}"),
            ("minutes", "taken", "{:.1f}"),
            ("planned", "minutes", "{:g}"),
            ("command", "command", "{}"),
        ),
    ),
)
