"""What plots show: runs that differ in their seed alone as one point, points of one kind as a series."""

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from grouped_lm.ranking import Row, pareto_rows

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
"""What makes two runs of one group size different kinds of runs, and how a label says it."""


@dataclass(frozen=True)
class Point:
    """One setting: a mean over seeds, with the least and the greatest."""

    series: str
    head: str
    group_size: int | None
    text: tuple[Any, Any]
    """Data and tokenizer: losses on different ones do not compare."""
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
    """Return the points of all complete runs, by series and group size."""
    complete = [row | {STEP_TOKENS: step_tokens(row)} for row in rows if row.get("state") == "complete"]
    differing = [kind for kind in KINDS if kind[0] == "head" or _differs(complete, kind[0])]
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in complete:
        grouped[*(row.get(key) for key, _ in KINDS), row.get("group_size")].append(row)
    points = []
    for same in grouped.values():
        row = same[0]
        series = " ".join(form.format(row[key]) for key, form in differing if row.get(key) is not None)
        text = row.get("data"), row.get("tokenizer")
        points.append(Point(series, str(row.get("head")), row.get("group_size"), text, tuple(same)))
    return sorted(points, key=lambda point: (point.series, point.group_size or 0))


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
