"""One table type: rows of figures and their columns, shown on a terminal, as Markdown and as CSV."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.markup import escape as plain
from rich.table import Table as RichTable

Row = dict[str, Any]
GIB, MIB = 2**30, 2**20


class Column(NamedTuple):
    """A column: its heading, the key of its figure in a row, and how the figure is formatted."""

    label: str
    key: str
    form: str = "{}"
    """A format string, or "bytes" for MiB and GiB. "{}" is for text, which is aligned left; figures go right."""

    @property
    def align(self) -> str:
        """Return `left` or `right`."""
        return "left" if self.form == "{}" else "right"


def columns(text: str) -> tuple[Column, ...]:
    """Return the columns of a list like `head; M tokens = millions {:.3g}; peak = peak_bytes bytes`.

    A column without `=` has its key as its label. A column without a format shows text.
    """
    parsed = []
    for part in filter(None, map(str.strip, text.replace("\n", ";").split(";"))):
        label, _, rest = part.rpartition("=")
        key, _, form = rest.strip().partition(" ")
        parsed.append(Column(label.strip() or key, key, form or "{}"))
    return tuple(parsed)


def show(value: Any, form: str = "{}", missing: str = "-") -> str:
    """Return a figure as tables show it; `missing` for None and for an empty text."""
    if value is None or value == "":
        return missing
    if form == "bytes":
        return f"{value / GIB:,.2f} GiB" if value >= GIB else f"{value / MIB:,.1f} MiB"
    return form.format(value)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows and the columns that are shown of them."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    name: str = ""
    """Name of its CSV file, without `.csv`."""
    note: str = ""
    """A sentence for the reader, shown with the table."""
    missing: str = "-"
    """Shown where a row has no figure."""

    def filled(self) -> list[Column]:
        """Return the columns in which at least one row has a figure."""
        return [column for column in self.columns if any(row.get(column.key) not in (None, "") for row in self.rows)]

    def cells(self) -> list[list[str]]:
        """Return the text of every cell, row by row, for the filled columns."""
        shown = self.filled()
        return [[show(row.get(column.key), column.form, self.missing) for column in shown] for row in self.rows]

    def markdown(self) -> str:
        """Return the table as Markdown, without its title."""
        shown = self.filled()
        dashes = ["---" if column.align == "left" else "---:" for column in shown]
        lines = [[column.label for column in shown], dashes, *self.cells()]
        return "".join(f"| {' | '.join(map(escape, line))} |\n" for line in lines)

    def csv(self) -> str:
        """Return every figure of every row as CSV, shown or not."""
        return csv_text(self.rows)

    def terminal(self) -> RichTable:
        """Return the table for `print_table`."""
        shown = self.filled()
        table = RichTable(title=plain(self.title) or None, title_justify="left")
        table.caption, table.caption_justify = plain(self.note) or None, "left"
        for column in shown:
            table.add_column(plain(column.label), justify=column.align, overflow="fold")  # type: ignore[arg-type]
        for cells in self.cells():
            table.add_row(*map(plain, cells))
        return table


def group_rows(
    rows: Iterable[Row], by: Sequence[str] | Callable[[Row], tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[Row]]:
    """Return rows by the values of some columns, or by a function of the row, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(by(row) if callable(by) else tuple(row.get(key) for key in by), []).append(row)
    return groups


def escape(text: str) -> str:
    """Return a text on one line, as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def csv_text(rows: Iterable[Row], names: Iterable[str] | None = None) -> str:
    """Return rows as CSV; lists and dicts become JSON, and floats read back as the same number.

    Args:
        rows: the rows.
        names: the columns in their order; None takes every key, in the order in which rows first have it.
    """
    rows = list(rows)
    text = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row)) if names is None else list(names)
    writer = csv.DictWriter(text, header, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def shorten_middle(text: str, width: int) -> str:
    """Return a text of at most `width` characters; a longer one loses its middle, since names differ at their ends."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"
