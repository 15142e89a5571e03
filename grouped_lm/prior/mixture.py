"""A mixture of a neural model and an n-gram model, with one weight.

The weight is fitted on a part of the training text that neither model was trained on, and never on the text that is
reported: log p = log((1 - weight) p_neural + weight p_counts), per token.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from grouped_lm.errors import DataError


def mixture_log_prob(neural_log_prob: np.ndarray, counts_log_prob: np.ndarray, weight: float) -> np.ndarray:
    """Return log((1 - weight) p_neural + weight p_counts) of every token, shape (N,) float64.

    Both arrays are (N,) log p of the same tokens, in nats; `weight` is in [0, 1].

    Raises:
        DataError: no tokens, arrays of two lengths, or a value that is not finite.
    """
    lengths = len(neural_log_prob), len(counts_log_prob)
    if lengths[0] == 0 or lengths[0] != lengths[1]:
        raise DataError(f"both models must have scored the same tokens, got {lengths[0]} and {lengths[1]}")
    if not (np.isfinite(neural_log_prob).all() and np.isfinite(counts_log_prob).all()):
        raise DataError("log probabilities must be finite: a token has probability 0 or NaN")
    with np.errstate(divide="ignore"):
        shares = np.log([1 - weight, weight])
    pair = np.asarray(neural_log_prob, np.float64) + shares[0], np.asarray(counts_log_prob, np.float64) + shares[1]
    return np.asarray(np.logaddexp(*pair))


def fit_mixture_weight(neural_log_prob: np.ndarray, counts_log_prob: np.ndarray) -> float:
    """Return the share of the n-gram model with the smallest loss, in [0, 1], within 1e-6.

    The loss is convex in the weight, so that the search finds the one minimum. The arrays and errors are those of
    `mixture_log_prob`, for a held-out text.
    """
    found = minimize_scalar(
        lambda weight: -float(mixture_log_prob(neural_log_prob, counts_log_prob, weight).mean()),
        bounds=(0.0, 1.0),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(found.x)
