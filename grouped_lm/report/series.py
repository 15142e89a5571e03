"""What plots show: runs that differ in their seed alone as one point, points of one kind as a series."""

import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grouped_lm.runs.query import Row, pareto_rows, text_of

STEP_TOKENS = "step_tokens"
KINDS: tuple[tuple[str, str], ...] = (
    ("head", "{}"),
    ("head_options", "{}"),
    ("grouping", "{}"),
    ("model", "{}"),
    ("data", "{}"),
    ("tokenizer", "{}"),
    ("model.block_size", "T {}"),
    ("train.max_steps", "{:,} steps"),
    (STEP_TOKENS, "{:,} tokens a step"),
    ("optim.lr", "lr {:g}"),
)
"""What a label says of runs of one group size where they differ in it; other settings only where it must."""


@dataclass(frozen=True)
class Point:
    """One setting: a mean over seeds, with the least and the greatest."""

    series: str
    head: str
    group_size: int | None
    text: tuple[Any, ...]
    """What tells text and tokenizer: losses on different ones do not compare."""
    rows: tuple[Row, ...]

    def values(self, key: str) -> list[float]:
        """Return the seeds' figures."""
        return [row[key] for row in self.rows if row.get(key) is not None]

    def mean(self, key: str) -> float | None:
        """Return their mean, None where there is none."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def spread(self, key: str) -> tuple[float, float]:
        """Return how far the least lies below the mean, and the greatest above it."""
        values = self.values(key)
        mean = statistics.fmean(values)
        return max(0.0, mean - min(values)), max(0.0, max(values) - mean)

    def label(self, alone: bool = False) -> str:
        """Return what tells the point apart; `alone`: its series is the only one."""
        if self.group_size is None:
            return self.series
        return f"S={self.group_size:,}" if alone else f"{self.series} S={self.group_size:,}"


def collect_points(rows: list[Row]) -> list[Point]:
    """Return the points of all complete runs, by series and group size; of runs of one seed the first alone."""
    seeds: dict[tuple[Any, ...], dict[Any, Row]] = defaultdict(dict)
    for row in rows:
        if row.get("state") == "complete":
            whole = row | {STEP_TOKENS: step_tokens(row)}
            seeds[_kind(whole)].setdefault(row.get("seed"), whole)
    found = [tuple(same.values()) for same in seeds.values()]
    points = [
        Point(series, str(same[0].get("head")), same[0].get("group_size"), text_of(same[0]), same)
        for series, same in zip(_name_series([same[0] for same in found]), found, strict=True)
    ]
    return sorted(points, key=lambda point: (point.series, point.group_size or 0))


def _kind(row: Row) -> tuple[Any, ...]:
    """Return what runs of one point share: all but the seed."""
    labels = (row.get(key) for key, _ in KINDS)
    return row.get("group_size"), text_of(row), *labels, *sorted(settings_of(row).items())


def settings_of(row: Row) -> Row:
    """Return the settings that a row carries under the names that commands use, and what it ran on."""
    return {key: value for key, value in row.items() if re.fullmatch(r"[a-z]+\.\w+|device", key) and value is not None}


def _name_series(rows: list[Row]) -> list[str]:
    """Return names by `KINDS`, longer by settings where two rows of one group size would otherwise have the same."""
    kinds = [kind for kind in KINDS if kind[0] == "head" or _differs(rows, kind[0])]
    names = [" ".join(form.format(row[key]) for key, form in kinds if row.get(key) is not None) for row in rows]
    known: Callable[[Row], Row]
    for known in (settings_of, lambda row: {"text": row.get("text")}):  # the hash of a text tells least: last
        apart = _differing(rows, names, known)
        names = [
            " ".join([name, *(f"{key}={known(row)[key]}" for key in apart if known(row).get(key) is not None)])
            for row, name in zip(rows, names, strict=True)
        ]
    return names


def _differing(rows: list[Row], names: list[str], known: Callable[[Row], Row]) -> list[str]:
    """Return what differs between rows of the same name and group size."""
    alike: dict[tuple[str, Any], list[Row]] = defaultdict(list)
    for row, name in zip(rows, names, strict=True):
        alike[name, row.get("group_size")].append(known(row))
    pairs = [(same[0], other) for same in alike.values() for other in same[1:]]
    return sorted({key for one, other in pairs for key in one | other if one.get(key) != other.get(key)})


def _differs(rows: list[Row], key: str) -> bool:
    """Return whether `key` tells runs of one head apart; text and size of the body may differ between heads too."""
    values: dict[str, set[Any]] = defaultdict(set)
    for row in rows:
        if row.get(key) is not None:
            values[row["head"] if key in ("head_options", "grouping") else ""].add(row[key])
    return any(len(found) > 1 for found in values.values())


def step_tokens(row: Row) -> int | None:
    """Return the tokens of one optimizer step."""
    sizes = [row.get(f"train.{key}") for key in ("micro_batch_size", "grad_accum_steps")] + [
        row.get("model.block_size")
    ]
    return None if None in sizes else sizes[0] * sizes[1] * sizes[2]  # type: ignore[operator]


def head_tokens(row: Row) -> int | None:
    """Return the tokens of one forward pass, N."""
    rows, length = row.get("train.micro_batch_size"), row.get("model.block_size")
    return rows * length if rows and length else None


def describe(points: list[Point]) -> str:
    """Return what all points share: model, data, budget, seeds."""
    rows = [row for point in points for row in point.rows]

    def one(key: str) -> Any:
        values = {row.get(key) for row in rows}
        return values.pop() if len(values) == 1 else None

    parts = [" on ".join(str(one(key)) for key in ("model", "data") if one(key) is not None)]
    if one("train.max_steps"):
        size = f" of {one(STEP_TOKENS):,} tokens" if one(STEP_TOKENS) else ""
        parts.append(f"{one('train.max_steps'):,} steps{size}")
    seeds = max(len({row.get("seed") for row in point.rows}) for point in points)
    parts.append(f"mean and range of {seeds} seeds" if seeds > 1 else f"seed {one('seed')}")
    if one("seed") is None and seeds == 1:
        parts.pop()
    return ", ".join(part for part in parts if part)


def front_of(points: list[Point], keys: tuple[tuple[str, int], ...]) -> list[list[Point]]:
    """Return, for each text, the points that no other on it beats in `keys`; see `pareto_rows`."""
    fronts = []
    for text in sorted({point.text for point in points}, key=str):
        means = [
            {"state": "complete", "point": point} | {key: point.mean(key) for key, _ in keys}
            for point in points
            if point.text == text
        ]
        fronts.append([row["point"] for row in pareto_rows(means, keys)])
    return fronts
