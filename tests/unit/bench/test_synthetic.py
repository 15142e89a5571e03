"""Languages whose entropy is a formula: held against draws from them."""

import numpy as np
import pytest

from grouped_lm.bench.synthetic import Language, build_language, entropy_of, stationary_of

LANGUAGES = [Language(500, 1), Language(500, n_class=7), Language(33, n_class=10, seed=3), Language(5, 40)]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda x: f"{x.vocab_size}-{x.n_class}")
def test_entropy_is_the_mean_loss_of_the_true_model(language):
    ids = language.sample(4000, 33, seed=1)
    losses = -language.log_prob(ids).mean(1)  # sequences are independent, tokens within one are not
    error = losses.std() / len(losses) ** 0.5
    assert losses.mean() == pytest.approx(language.entropy, abs=4 * error)
    assert error < 0.01


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda x: f"{x.vocab_size}-{x.n_class}")
def test_every_next_token_distribution_sums_to_one(language):
    v = language.vocab_size
    for before in (0, v // 2, v - 1):
        pairs = np.stack([np.full(v, before), np.arange(v)], axis=1)
        assert np.exp(language.log_prob(pairs)).sum() == pytest.approx(1, abs=1e-12)
    assert language.frequencies.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda x: f"{x.vocab_size}-{x.n_class}")
def test_frequencies_are_those_of_samples_at_every_place(language):
    ids = language.sample(20_000, 3, seed=2)
    for place in range(3):
        found = np.bincount(ids[:, place], minlength=language.vocab_size) / len(ids)
        assert np.abs(found - language.frequencies).max() < 0.02


def test_two_tokens_by_hand():
    assert build_language("zipf", 2).entropy == pytest.approx(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))
    assert build_language("zipf", 1).entropy == 0
    assert stationary_of(np.array([[0.9, 0.1], [0.5, 0.5]])) == pytest.approx([5 / 6, 1 / 6])
    assert entropy_of(np.array([0.5, 0.5, 0.0])) == pytest.approx(np.log(2))


def test_context_tells_something_and_seeds_matter():
    one, other = build_language("markov", 1000, 0), build_language("markov", 1000, 1)
    assert one.entropy < entropy_of(one.frequencies) - 0.5
    assert one.entropy != other.entropy
    assert np.array_equal(one.sample(3, 9, 5), one.sample(3, 9, 5))
    assert not np.array_equal(one.sample(3, 9, 5), one.sample(3, 9, 6))
    assert build_language("zipf", 10**6).entropy == pytest.approx(9.6, abs=0.5)
