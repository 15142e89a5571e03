"""The rows of a suite as tables; what is the same in all rows of a table is in its title."""

from collections.abc import Sequence
from importlib.resources import files

import yaml

from grouped_lm.system.tables import Row, Table, columns

SHAPE = (
    *("device", "dtype", "part", "model", "attention", "language", "n_tokens", "n_embd", "vocab_size", "block_size"),
    "batch_size",
)
"""Rows that differ in one of these are in different tables."""


def suite_tables(suite: str, rows: Sequence[Row]) -> list[Table]:
    """Return one table for each shape."""
    shown = yaml.safe_load(files("grouped_lm.bench").joinpath("tables.yaml").read_text(encoding="utf-8"))[suite]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = ", ".join(f"{key} {row[key]}" for key in SHAPE if row.get(key) is not None)
        groups.setdefault(title, []).append(row)
    return [Table(title=title, rows=group, columns=columns(shown), missing="") for title, group in groups.items()]
