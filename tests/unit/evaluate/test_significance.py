"""Verdicts err as seldom as they say."""

import numpy as np
import pytest
from scipy import stats

from grouped_lm.evaluate.significance import compare_checkpoints, compare_methods, compare_paired


def test_a_run_against_itself_is_exactly_zero():
    nll, tokens = np.random.default_rng(0).normal(100, 10, 50), np.full(50, 40)
    found = compare_checkpoints(nll, nll, tokens, resamples=200)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_one_story_has_a_difference_and_no_interval():
    found = compare_checkpoints(np.array([30.0]), np.array([32.0]), np.array([10]))
    assert (found.difference, found.low, found.high, found.p_value, found.stories) == (0.2, None, None, None, 1)


def test_a_difference_is_found_per_token():
    draws = np.random.default_rng(0)
    tokens = draws.integers(20, 200, 300)
    first = 2.0 * tokens + draws.normal(0, 5, 300)
    second = first + 0.05 * tokens + draws.normal(0, 1, 300)
    found = compare_checkpoints(first, second, tokens, resamples=1_000)
    assert found.low < 0.05 < found.high
    assert found.high - found.low < 0.01
    assert found.p_value < 0.01


def test_permutations_and_intervals_err_as_often_as_they_say():
    draws, n_pairs = np.random.default_rng(0), 300
    tokens = np.full(40, 50)
    found = [
        compare_checkpoints(np.zeros(40), draws.normal(0, 1, 40), tokens, seed=i, resamples=1_000)
        for i in range(n_pairs)
    ]
    assert np.mean([f.p_value <= 0.05 for f in found]) <= 0.075  # 5 % and two deviations of 300 tries
    assert np.mean([f.low > 0 or f.high < 0 for f in found]) <= 0.09


def test_paired_differences_are_a_one_sample_t():
    draws = np.random.default_rng(0)
    seeds = draws.normal(0, 1, 4)  # what the two of a seed share
    gaps = list(seeds + 0.05 - seeds + draws.normal(0, 0.001, 4))
    found = compare_paired(gaps)
    low, high = stats.t.interval(0.9, 3, np.mean(gaps), stats.sem(gaps))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.verdict, compare_paired([0.05]).verdict) == ("not on par", "not shown")
    assert np.mean([compare_paired(list(draws.normal(0.01, 0.01, 3))).verdict == "on par" for _ in range(500)]) <= 0.07


def rate(verdict: str, true_difference: float, n_seeds: int, spread: float, n_pairs: int = 1_000) -> float:
    draws = np.random.default_rng(0)
    found = [
        compare_methods(
            list(draws.normal(3.0, spread, n_seeds)), list(draws.normal(3.0 + true_difference, spread, n_seeds))
        )
        for _ in range(n_pairs)
    ]
    return float(np.mean([f.verdict == verdict for f in found]))


@pytest.mark.parametrize("n_seeds", [2, 3, 10])
@pytest.mark.parametrize("spread", [0.0005, 0.003, 0.02])
def test_no_more_than_5_percent_of_unequal_pairs_are_called_on_par(n_seeds, spread):
    assert rate("on par", 0.0101, n_seeds, spread) <= 0.05


@pytest.mark.parametrize("n_seeds", [3, 10])
def test_no_more_than_5_percent_of_equal_pairs_are_called_not_on_par(n_seeds):
    assert rate("not on par", 0.0099, n_seeds, 0.003) <= 0.05


def test_equal_methods_with_little_spread_are_on_par():
    assert rate("on par", 0.0, 3, 0.002) > 0.9
    assert rate("not on par", 0.05, 3, 0.002) > 0.9


def test_one_seed_is_never_shown():
    found = compare_methods([3.0], [3.9, 3.9, 3.9])
    assert found.verdict == "not shown"
    assert found.low is None
    assert found.difference == pytest.approx(0.9)


def test_equal_losses_of_all_seeds_need_no_spread():
    assert compare_methods([3.0, 3.0], [3.0, 3.0]).verdict == "on par"
    assert compare_methods([3.0, 3.0], [3.1, 3.1]).verdict == "not on par"
