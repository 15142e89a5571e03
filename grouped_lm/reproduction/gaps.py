"""How far a head is from the full softmax along training: does the gap close with more tokens?"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from grouped_lm.reproduction.claims import Claims
from grouped_lm.reproduction.evidence import Evidence
from grouped_lm.reproduction.verdicts import Setting, runs_in

METHODS = ("paper", "film", "ours")
DOUBLINGS = 2
"""The trend is that of the last doublings of the tokens."""


@dataclass(frozen=True)
class Gap:
    """Validation loss of a head minus that of the full softmax, means over seeds, along training."""

    method: str
    name: str
    gaps: dict[int, float]
    """Training tokens -> nats."""
    trend: float | None
    """Nats per doubling of the tokens over the last `DOUBLINGS`; None with fewer than three points there."""


def gaps_of(claims: Claims, evidence: Evidence, setting: Setting) -> Iterator[Gap]:
    """Yield the gap of each method at the tokens at which all seeds of it and of dense were validated."""
    losses: dict[str, dict[int, float]] = {}
    for row in evidence["curves"]:
        if row.get("val_loss") is not None and row.get("tokens"):
            losses.setdefault(row["run"], {})[row["tokens"]] = row["val_loss"]

    def curves(method: str) -> list[dict[int, float]]:
        runs = runs_in(evidence, claims.methods[method], setting).values()
        return [losses[run["run"]] for run in runs if run["run"] in losses]

    dense = curves("dense")
    for method in METHODS:
        own = curves(method)
        if dense and own:
            shared = sorted(set.intersection(*map(set, [*dense, *own])))
            gaps = {n: mean_at(own, n) - mean_at(dense, n) for n in shared}
            if gaps:
                yield Gap(method, claims.methods[method].name, gaps, trend_of(gaps))


def mean_at(curves: list[dict[int, float]], tokens: int) -> float:
    """Return the mean loss of the curves after some tokens."""
    return statistics.fmean(curve[tokens] for curve in curves)


def trend_of(gaps: dict[int, float]) -> float | None:
    """Return the slope of the gap against log2 of the tokens, by least squares over the last `DOUBLINGS`."""
    last = [n for n in gaps if n * 2**DOUBLINGS >= max(gaps)]
    if len(last) < 3:
        return None
    return statistics.linear_regression([math.log2(n) for n in last], [gaps[n] for n in last]).slope


def describe_trends(gaps: list[Gap]) -> str:
    """Return where each gap ends and how it changes, in words."""
    parts = []
    for gap in gaps:
        end = f"{gap.name} {gap.gaps[max(gap.gaps)]:+.3f} nats"
        parts.append(end if gap.trend is None else f"{end}, {gap.trend:+.3f} per doubling of the tokens")
    return "; ".join(parts)
