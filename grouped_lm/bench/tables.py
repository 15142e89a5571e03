"""The rows of a suite as one table per shape; the shape is in the title."""

from collections.abc import Sequence
from importlib.resources import files

import yaml

from grouped_lm.system.tables import Row, Table, columns, group_rows

SHAPE = (
    *("device", "dtype", "part", "model", "attention", "language", "n_tokens", "n_embd", "vocab_size", "block_size"),
    "batch_size",
)
"""Rows that differ in one of these are in different tables."""


def suite_tables(suite: str, rows: Sequence[Row]) -> list[Table]:
    """Return one table for each shape."""
    shown = yaml.safe_load(files("grouped_lm.bench").joinpath("tables.yaml").read_text(encoding="utf-8"))[suite]
    tables = []
    for shape, group in group_rows(rows, SHAPE).items():
        title = ", ".join(f"{key} {value}" for key, value in zip(SHAPE, shape, strict=True) if value is not None)
        tables.append(Table(title=title, rows=group, columns=columns(shown), missing=""))
    return tables
