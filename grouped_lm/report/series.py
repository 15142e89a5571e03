"""The points of plots: runs that differ only in their seed are one point, points of one kind are a series."""

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grouped_lm.runs.query import Row, pareto_rows, text_of
from grouped_lm.system.tables import group_rows

STEP_TOKENS = "step_tokens"
LABELS = {
    **dict.fromkeys(("head", "head_options", "grouping", "model", "data", "tokenizer"), "{}"),
    "model.block_size": "T {}",
    "train.max_steps": "{:,} steps",
    STEP_TOKENS: "{:,} tokens a step",
    "optim.lr": "lr {:g}",
}
"""Settings in the name of a series if runs differ in them. Others are added only if names would be equal."""


@dataclass(frozen=True)
class Point:
    """The runs of one setting, one per seed."""

    series: str
    head: str
    group_size: int | None
    text: tuple[Any, ...]
    """Identifies text and tokenizer: losses can only be compared within one text."""
    rows: tuple[Row, ...]

    def values(self, key: str) -> list[float]:
        """Return the known figures of the seeds."""
        return [row[key] for row in self.rows if row.get(key) is not None]

    def mean(self, key: str) -> float | None:
        """Return the mean over seeds; None if no seed has the figure."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def spread(self, key: str) -> tuple[float, float]:
        """Return the distances from the mean to the smallest and to the largest figure."""
        values = self.values(key)
        mean = statistics.fmean(values)
        return max(0.0, mean - min(values)), max(0.0, max(values) - mean)

    def label(self, alone: bool = False) -> str:
        """Return the name of the point; without its series if that is the only one (`alone`)."""
        if self.group_size is None:
            return self.series
        return f"S={self.group_size:,}" if alone else f"{self.series} S={self.group_size:,}"


def collect_points(rows: list[Row]) -> list[Point]:
    """Return the points of all complete runs, by series and group size; of several runs with one seed, the first."""
    complete = [row for row in rows if row.get("state") == "complete"]
    complete = [row | {STEP_TOKENS: head_tokens(row, row.get("train.grad_accum_steps"))} for row in complete]

    def setting(row: Row) -> tuple[Any, ...]:
        labels = (row.get(key) for key in LABELS)
        return row.get("group_size"), text_of(row), *labels, *sorted(settings_of(row).items())

    runs = [[own[0] for own in group_rows(same, ("seed",)).values()] for same in group_rows(complete, setting).values()]
    points = [
        Point(series, str(same[0].get("head")), same[0].get("group_size"), text_of(same[0]), tuple(same))
        for series, same in zip(_series_names([same[0] for same in runs]), runs, strict=True)
    ]
    return sorted(points, key=lambda point: (point.series, point.group_size or 0))


def settings_of(row: Row) -> Row:
    """Return the settings of a run such as `optim.lr`, the run that it began with, and the device that it ran on."""
    known = re.compile(r"[a-z]+\.\w+|init_from|device")
    return {key: value for key, value in row.items() if known.fullmatch(key) and value is not None}


def _series_names(rows: list[Row]) -> list[str]:
    """Return names from `LABELS`, with more settings where rows of one group size would have the same name."""

    def differs(key: str) -> bool:
        """Head options and groupings differ within one head; everything else also between heads."""
        scope = ("head",) if key in ("head_options", "grouping") else ()
        known = group_rows([row for row in rows if row.get(key) is not None], scope)
        return any(len({row[key] for row in same}) > 1 for same in known.values())

    shown = [key for key in LABELS if key == "head" or differs(key)]
    names = [" ".join(LABELS[key].format(row[key]) for key in shown if row.get(key) is not None) for row in rows]
    extras: tuple[Callable[[Row], Row], ...] = (settings_of, lambda row: {"text": row.get("text")})
    for extra in extras:  # the hash of a text says least to a reader, so it comes last
        known = [extra(row) for row in rows]
        first: dict[tuple[Any, ...], Row] = {}
        keys: set[str] = set()  # in which rows of one name and group size differ
        for name, row, own in zip(names, rows, known, strict=True):
            other = first.setdefault((name, row.get("group_size")), own)
            keys |= {key for key in own | other if own.get(key) != other.get(key)}
        more = [[f"{key}={own[key]}" for key in sorted(keys) if own.get(key) is not None] for own in known]
        names = [" ".join([name, *parts]) for name, parts in zip(names, more, strict=True)]
    return names


def names_of_runs(rows: list[Row]) -> list[str]:
    """Return a name for each run, of the settings in which the runs differ, with its seed where names are equal."""
    rows = [row | {STEP_TOKENS: head_tokens(row, row.get("train.grad_accum_steps"))} for row in rows]
    several = len({row.get("group_size") for row in rows if row.get("group_size")}) > 1
    sizes = [f" S={row['group_size']:,}" if several and row.get("group_size") else "" for row in rows]
    names = [name + size for name, size in zip(_series_names(rows), sizes, strict=True)]
    names = [
        f"{name}, seed {row['seed']}" if names.count(name) > 1 else name for name, row in zip(names, rows, strict=True)
    ]
    return [f"{name}, {row['run']}" if names.count(name) > 1 else name for name, row in zip(names, rows, strict=True)]


def head_tokens(row: Row, passes: int | None = 1) -> int | None:
    """Return N, the tokens of one forward pass, or of several `passes`; None if a setting is missing."""
    factors = row.get("train.micro_batch_size"), row.get("model.block_size"), passes
    return math.prod(factors) if all(factors) else None  # type: ignore[arg-type]


def describe(points: list[Point]) -> str:
    """Return the settings that all points share: model, data, budget, seeds."""
    rows = [row for point in points for row in point.rows]

    def common(key: str) -> Any:
        values = {row.get(key) for row in rows}
        return values.pop() if len(values) == 1 else None

    parts = [" on ".join(str(common(key)) for key in ("model", "data") if common(key) is not None)]
    if common("train.max_steps"):
        size = f" of {common(STEP_TOKENS):,} tokens" if common(STEP_TOKENS) else ""
        parts.append(f"{common('train.max_steps'):,} steps{size}")
    seeds = max(len({row.get("seed") for row in point.rows}) for point in points)
    if seeds > 1:
        parts.append(f"mean and range of {seeds} seeds")
    elif common("seed") is not None:
        parts.append(f"seed {common('seed')}")
    return ", ".join(filter(None, parts))


def front_of(points: list[Point], keys: tuple[tuple[str, int], ...]) -> list[list[Point]]:
    """Return the Pareto front of each text: the points that no other point on it beats in `keys`."""
    fronts = []
    for text in sorted({point.text for point in points}, key=str):
        own = [point for point in points if point.text == text]
        means = [{"state": "complete", "point": point} | {key: point.mean(key) for key, _ in keys} for point in own]
        fronts.append([row["point"] for row in pareto_rows(means, keys)])
    return fronts
