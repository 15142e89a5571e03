"""Is one better, and is it as good? Paired differences between checkpoints, equivalence between methods.

Letters: S stories, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

MARGIN = 0.01
"""Nats per token within which two methods are called on par."""
LEVEL = 0.05
"""Error rate of every verdict."""
RESAMPLES = 10_000
ON_PAR, NOT_ON_PAR, NOT_SHOWN = "on par", "not on par", "not shown"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointDifference:
    """Second less first, of these two checkpoints on this text; another seed may turn it round."""

    difference: float
    """Nats per token."""
    low: float
    """95 % bootstrap interval over stories."""
    high: float
    p_value: float
    """Two-sided permutation test: the sign of every story's difference is drawn anew."""
    stories: int


def compare_checkpoints(
    first: np.ndarray, second: np.ndarray, tokens: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> CheckpointDifference:
    """Compare two models story by story.

    Args:
        first, second: (S,) nats of every story.
        tokens: (S,) targets of every story.
        seed: of resampling.
        resamples: R of the bootstrap and of the permutations, >= 1.
    """
    generator = np.random.default_rng(seed)
    gaps = second - first
    total = float(tokens.sum())
    found = float(gaps.sum()) / total
    means, extreme = np.empty(resamples), 0
    for index in range(resamples):  # one resample at a time: R x S numbers may not fit
        picked = generator.integers(len(gaps), size=len(gaps))
        means[index] = gaps[picked].sum() / tokens[picked].sum()
        signs = generator.integers(2, size=len(gaps), dtype=np.int8) * 2 - 1
        extreme += abs(float(signs @ gaps)) / total >= abs(found) - 1e-15
    low, high = np.quantile(means, [0.025, 0.975])
    return CheckpointDifference(
        difference=found,
        low=float(low),
        high=float(high),
        p_value=(extreme + 1) / (resamples + 1),
        stories=len(gaps),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodDifference:
    """Second less first, as methods: seeds are drawn anew."""

    difference: float
    """Difference of the mean losses, nats per token."""
    low: float | None
    """90 % interval (Welch): the two one-sided tests at 5 % ask whether it lies within the margin. None: one seed."""
    high: float | None
    verdict: str
    """`on par`: the interval lies within +-margin; `not on par`: it lies outside; `not shown`: neither."""
    seeds: tuple[int, int]
    margin: float


def compare_methods(first: list[float], second: list[float], margin: float = MARGIN) -> MethodDifference:
    """Test two methods for equivalence by their losses over seeds (two one-sided tests, Schuirmann 1987).

    Args:
        first, second: loss of every seed, nats per token, one or more.
        margin: what counts as no difference, nats per token, > 0.
    """
    difference = float(np.mean(second) - np.mean(first))
    seeds = (len(first), len(second))
    if min(seeds) < 2:
        return MethodDifference(
            difference=difference, low=None, high=None, verdict=NOT_SHOWN, seeds=seeds, margin=margin
        )
    parts = [np.var(losses, ddof=1) / len(losses) for losses in (first, second)]
    error = float(np.sqrt(sum(parts)))
    freedom = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, seeds, strict=True)) if error else 1.0
    reach = float(stats.t.ppf(1 - LEVEL, freedom)) * error if error else 0.0
    return _difference(difference, reach, seeds, margin)


def compare_paired(differences: list[float], margin: float = MARGIN) -> MethodDifference:
    """Test for equivalence what was measured as a difference within every seed: the same two tests, one sample.

    Args:
        differences: second less first of every seed, nats per token, one or more.
        margin: what counts as no difference, nats per token, > 0.
    """
    count, difference = len(differences), float(np.mean(differences))
    if count < 2:
        return MethodDifference(
            difference=difference, low=None, high=None, verdict=NOT_SHOWN, seeds=(count, count), margin=margin
        )
    error = float(np.std(differences, ddof=1)) / np.sqrt(count)
    reach = float(stats.t.ppf(1 - LEVEL, count - 1) * error)
    return _difference(difference, reach, (count, count), margin)


def _difference(difference: float, reach: float, seeds: tuple[int, int], margin: float) -> MethodDifference:
    """Return the difference with its interval and verdict."""
    low, high = difference - reach, difference + reach
    verdict = NOT_SHOWN
    if -margin < low and high < margin:
        verdict = ON_PAR
    elif low > margin or high < -margin:
        verdict = NOT_ON_PAR
    return MethodDifference(difference=difference, low=low, high=high, verdict=verdict, seeds=seeds, margin=margin)
