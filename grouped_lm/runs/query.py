"""Sort and filter the rows of runs, and find the Pareto front."""

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

from grouped_lm.errors import ConfigError
from grouped_lm.system.tables import Row, columns, group_rows

COLUMNS = columns("""
    head; prior; group size = group_size {:,}; model; data; seed; state; step = trainer/step {:,}
    perplexity = val/perplexity {:,.2f}; bits/byte = val/bits_per_byte {:.3f}; group acc. = val/group_accuracy {:.1%}
    train ppl = train/perplexity {:,.1f}; tokens/s = throughput/tokens_per_sec {:,.0f}
    speed, x dense = throughput/vs_dense {:.1f}; peak GiB = memory/peak {:.3f}
    memory, x dense = memory/vs_dense {:.2f}; head GiB = memory/peak_head_gib {:.4f}
    parameters = params/total {:,}; front
""")
"""Columns of tables: label, key of the row, format."""

QUALITY, SPEED, MEMORY = ("val/loss", -1), ("throughput/tokens_per_sec", 1), ("memory/peak", -1)
PARETO_KEYS = (QUALITY, SPEED, MEMORY)
"""The keys of the Pareto front, each with 1 if more is better or -1 if less is better."""

OPERATORS: dict[str, Any] = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def column_names(rows: list[Row]) -> dict[str, str]:
    """Return the key of a column by each of its names: the key, the label in tables, the last word of the key."""
    keys = {key for row in rows for key in row} | {key for _, key, _ in COLUMNS}
    words: dict[str, list[str]] = {}
    for key in sorted(keys):
        words.setdefault(re.split(r"[/.]", key)[-1], []).append(key)
    names = {word: same[0] for word, same in words.items() if len(same) == 1}
    return names | {"ppl": "val/perplexity"} | {label: key for label, key, _ in COLUMNS} | {key: key for key in keys}


def find_column(name: str, rows: list[Row]) -> str:
    """Return the key of the column with this name. Without one, raise a ConfigError with the nearest name."""
    names = column_names(rows)
    wanted = name.strip()
    for spelled in (wanted, wanted.lower(), wanted.replace("_", " ")):
        if spelled in names:
            return names[spelled]
    near = difflib.get_close_matches(wanted.lower(), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(label for label, _, _ in COLUMNS)}"
    raise ConfigError(f"no column {wanted}: {hint}")


def sort_rows(rows: list[Row], name: str, reverse: bool = False) -> list[Row]:
    """Return the rows sorted by one column, smallest first. Rows without a value always come last."""
    key = find_column(name, rows)
    known = [row for row in rows if row.get(key) is not None]
    # Numbers before words; sorted() keeps the order of equals, also in reverse.
    known.sort(key=lambda row: (isinstance(row[key], str), row[key]), reverse=reverse)
    return known + [row for row in rows if row.get(key) is None]


def select_rows(rows: list[Row], conditions: Iterable[str]) -> list[Row]:
    """Return the rows that meet every condition, such as `head=grouped`, `state!=failed` or `seed<3`."""
    tests = [_parse(condition, rows) for condition in conditions]
    return [row for row in rows if all(test(row) for test in tests)]


def _parse(condition: str, rows: list[Row]) -> Callable[[Row], bool]:
    """Return a condition as a function of a row.

    `seed=0,1` means 0 or 1, as in `gvc sweep`, unless a row has the value `0,1` itself: tables show 1024 as 1,024.
    """
    parts = re.fullmatch(r"([^<>=!]+)(<=|>=|!=|==|=|<|>)(.*)", condition.strip())
    if parts is None:
        raise ConfigError(f"{condition!r} is no condition: write COLUMN=VALUE, or != < > <= >= for =")
    key, sign, text = find_column(parts[1], rows), parts[2], parts[3].strip()
    number = _number(text)
    if sign in OPERATORS:
        if number is None:
            raise ConfigError(f"{condition!r}: {sign} needs a number, got {text!r}")
        return lambda row: _number(row.get(key)) is not None and OPERATORS[sign](_number(row[key]), number)
    whole = any(_same(row.get(key), text) for row in rows)
    accepted = [text] if whole else [part.strip() for part in text.split(",")]
    return lambda row: any(_same(row.get(key), one) for one in accepted) == (sign != "!=")


def _number(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?", value.strip()):
        value = value.replace(",", "")
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _same(value: Any, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) == _number(text)
    return ("-" if value is None else str(value)).lower() == text.lower() or (value is None and text.lower() == "none")


def pareto_rows(rows: list[Row], keys: Iterable[tuple[str, int]] = PARETO_KEYS) -> list[Row]:
    """Return the Pareto front: the runs that no other run beats.

    One run beats another if it is at least as good in every key and better in one. So runs that are equal in all keys
    stay together. Runs that are not complete, or lack a value, are left out. All runs have the same text and tokenizer.
    """
    signs, entries = tuple(keys), []
    for row in rows:
        values = [row.get(key) for key, _ in signs]
        if row.get("state") == "complete" and all(v is not None and math.isfinite(v) for v in values):
            entries.append((row, tuple(sign * value for (_, sign), value in zip(signs, values, strict=True))))  # type: ignore[operator]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for _, other in entries)

    return [row for row, mine in entries if not beaten(mine)]


def text_of(row: Row) -> tuple[Any, ...]:
    """Return a key for the text and tokenizer of a run: the hash `text`, or the labels if a table lacks it."""
    return (row["text"],) if row.get("text") else (row.get("data"), row.get("tokenizer"))


def mark_front(rows: list[Row]) -> None:
    """Set `front` to "yes" for runs on the Pareto front of their text, "no" for other complete runs, else None."""
    for row in rows:
        row["front"] = "no" if row.get("state") == "complete" else None
    for same_text in group_rows(rows, text_of).values():
        for row in pareto_rows(same_text):
            row["front"] = "yes"
