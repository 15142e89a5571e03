"""The mixture of two models with one weight."""

import numpy as np
import pytest

from grouped_lm.errors import DataError
from grouped_lm.prior.mixture import fit_mixture_weight, mixture_log_prob


def two_models(tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities of two models that are each good where the other is bad."""
    rng = np.random.default_rng(seed)
    return np.log(rng.beta(0.5, 2, tokens) + 1e-4), np.log(rng.beta(0.4, 2.5, tokens) + 1e-4)


def test_the_fitted_weight_is_the_best_of_a_grid():
    neural, counts = two_models(5_000, 0)
    weight = fit_mixture_weight(neural, counts)
    losses = {w: -mixture_log_prob(neural, counts, w).mean() for w in np.linspace(0, 1, 1001)}
    assert weight == pytest.approx(min(losses, key=losses.get), abs=1e-3)
    assert -mixture_log_prob(neural, counts, weight).mean() <= min(losses.values())


def test_the_mixture_is_the_plain_formula_and_its_ends_are_the_models():
    neural, counts = two_models(100, 1)
    plain = np.log(0.7 * np.exp(neural) + 0.3 * np.exp(counts))
    np.testing.assert_allclose(mixture_log_prob(neural, counts, 0.3), plain, atol=1e-12, rtol=0)
    assert np.array_equal(mixture_log_prob(neural, counts, 0.0), neural)
    assert np.array_equal(mixture_log_prob(neural, counts, 1.0), counts)


def test_a_useless_model_gets_no_weight():
    neural, _ = two_models(1_000, 4)
    assert fit_mixture_weight(neural, np.full(1_000, -30.0)) < 1e-4


@pytest.mark.parametrize("pair", [([], []), ([-1.0], [-1.0, -2.0]), ([-1.0], [-np.inf])])
def test_what_cannot_be_mixed_is_refused(pair):
    with pytest.raises(DataError):
        fit_mixture_weight(*map(np.array, pair))
