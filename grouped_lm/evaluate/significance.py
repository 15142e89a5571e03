"""Tests of differences: between two checkpoints story by story, and between two methods over seeds.

Shape letters: S stories.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

MARGIN = 0.01
"""Nats per token within which two methods count as equally good."""
LEVEL = 0.05
"""Error rate of every verdict."""
RESAMPLES = 10_000
BATCH_NUMBERS = 2**22
"""Numbers that scipy holds at once while it resamples: 32 MiB."""
ON_PAR, NOT_ON_PAR, NOT_SHOWN = "on par", "not on par", "not shown"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointDifference:
    """The loss of the second checkpoint minus the first's, on one text. Another seed may change its sign."""

    difference: float
    """Nats per token."""
    low: float | None
    """95 % bootstrap interval over stories. None with one story."""
    high: float | None
    p_value: float | None
    """Two-sided permutation test: the sign of each story's difference is random. None with one story."""
    stories: int


def compare_checkpoints(
    first: np.ndarray, second: np.ndarray, tokens: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> CheckpointDifference:
    """Return the difference of two checkpoints on the same stories, with its interval and p-value.

    `first` and `second` have the (S,) nats of each story, `tokens` its (S,) targets.
    """
    gaps = second - first
    difference = float(gaps.sum()) / float(tokens.sum())
    if len(gaps) < 2:
        return CheckpointDifference(difference=difference, low=None, high=None, p_value=None, stories=len(gaps))
    options = {"n_resamples": resamples, "vectorized": True, "random_state": seed}
    options["batch"] = max(1, min(resamples, BATCH_NUMBERS // len(gaps)))

    def per_token(gaps: np.ndarray, tokens: np.ndarray, axis: int) -> np.ndarray:
        return gaps.sum(axis) / tokens.sum(axis)

    interval = stats.bootstrap((gaps, tokens), per_token, paired=True, method="percentile", **options)
    signs = stats.permutation_test((gaps,), np.sum, permutation_type="samples", **options)
    return CheckpointDifference(
        difference=difference,
        low=float(interval.confidence_interval.low),
        high=float(interval.confidence_interval.high),
        p_value=float(signs.pvalue),
        stories=len(gaps),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodDifference:
    """The loss of the second method minus the first's, over seeds."""

    difference: float
    """Difference of the mean losses, nats per token."""
    low: float | None
    """90 % interval. The two one-sided tests at 5 % ask whether it is within the margin. None with one seed."""
    high: float | None
    verdict: str
    """`on par`: the interval is within +-margin. `not on par`: it is outside. `not shown`: neither."""
    seeds: tuple[int, int]
    margin: float


def compare_methods(first: list[float], second: list[float], margin: float = MARGIN) -> MethodDifference:
    """Return whether two methods are equivalent over seeds (two one-sided Welch tests, Schuirmann 1987).

    Both have the loss of one seed or more, in nats per token. A difference below `margin`, > 0, counts as none.
    """
    difference, interval = float(np.mean(second) - np.mean(first)), None
    if min(len(first), len(second)) > 1:
        interval = difference, difference
        if np.ptp(first) or np.ptp(second):  # without any spread there are no degrees of freedom
            freedom = stats.ttest_ind(second, first, equal_var=False).df
            error = np.sqrt(np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second))
            reach = float(stats.t.ppf(1 - LEVEL, freedom) * error)  # scipy's interval differs in the 16th digit
            interval = difference - reach, difference + reach
    return _difference(difference, interval, (len(first), len(second)), margin)


def compare_paired(differences: list[float], margin: float = MARGIN) -> MethodDifference:
    """Return whether two methods are equivalent, from the difference within each seed (two one-sided t tests).

    `differences` are second minus first, nats per token, one seed or more.
    """
    interval = paired_interval(differences, 1 - 2 * LEVEL)
    return _difference(float(np.mean(differences)), interval, (len(differences), len(differences)), margin)


def paired_interval(differences: list[float], confidence: float) -> tuple[float, float] | None:
    """Return the interval of a mean difference (one-sample t test); None with fewer than two differences.

    `confidence` is the share of intervals that contain the true mean, in (0, 1).
    """
    if len(differences) < 2:
        return None
    mean = float(np.mean(differences))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(differences) - 1) * stats.sem(differences))
    return mean - reach, mean + reach


def _difference(
    difference: float, interval: tuple[float, float] | None, seeds: tuple[int, int], margin: float
) -> MethodDifference:
    low, high = interval or (None, None)
    verdict = NOT_SHOWN
    if interval and max(map(abs, interval)) < margin:
        verdict = ON_PAR
    elif interval and (interval[0] > margin or interval[1] < -margin):
        verdict = NOT_ON_PAR
    return MethodDifference(difference=difference, low=low, high=high, verdict=verdict, seeds=seeds, margin=margin)
