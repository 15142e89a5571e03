"""The n-gram model against its definition, on texts of a few hundred tokens."""

import subprocess
import sys

import numpy as np
import pytest
from literal_kneser_ney import EOT, HISTORIES, VOCAB, LiteralKneserNey, events, small_text
from scipy import stats

from grouped_lm.errors import ConfigError, DataError
from grouped_lm.prior import build_kneser_ney
from grouped_lm.prior.kneser_ney import _CHUNK, NO_TOKEN
from grouped_lm.prior.tables import count_ngrams, estimate_discounts

ORDERS = (2, 3, 4, 5)


def literal_prob(model: LiteralKneserNey, history: list[int]) -> list[float]:
    context = events([EOT, *history, 1], model.order)[-1][0] if history else ()
    context = context[-len(history) :] if history else ()
    return [model.prob(word, context) for word in range(VOCAB)]


@pytest.mark.parametrize("order", ORDERS)
def test_probabilities_are_those_of_the_definition_and_sum_to_one(order):
    text = small_text()
    model = build_kneser_ney(text, VOCAB, EOT, order)
    literal = LiteralKneserNey(events(text.tolist(), order), order)
    prob = model.probabilities(HISTORIES)
    np.testing.assert_allclose(prob.sum(axis=1), 1, atol=1e-12)
    assert prob.min() > 0
    np.testing.assert_allclose(prob, [literal_prob(literal, history) for history in HISTORIES], atol=1e-12, rtol=0)
    for level, discounts in zip(model.levels, literal.discounts, strict=True):
        np.testing.assert_allclose(level.discounts, discounts, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_log_prob_of_a_text_is_that_of_the_definition(order):
    text, other = small_text(), small_text(150, seed=1)
    other[40:43] = [10, 9, 10]  # tokens that the model never saw
    model = build_kneser_ney(text, VOCAB, EOT, order)
    literal = LiteralKneserNey(events(text.tolist(), order), order)
    expected = [np.log(literal.prob(word, context)) for context, word in events(other.tolist(), order)]
    np.testing.assert_allclose(model.target_log_prob(other), expected, atol=1e-12, rtol=0)
    np.testing.assert_allclose(model.target_log_prob(other, 30, 60), expected[29:59], atol=1e-12, rtol=0)
    prob = model.probabilities(model.text_contexts(other, 30, 60))
    np.testing.assert_allclose(np.log(prob[np.arange(30), other[30:60]]), expected[29:59], atol=1e-12, rtol=0)


def test_continuation_counts_of_a_text_written_by_hand():
    text = np.array([0, 1, 2, 0, 3, 2, 0, 1, 2, 2, 0])
    unigrams, bigrams, trigrams = count_ngrams(text, 4, 0, 3)
    # 0 follows 2 alone; 1 and 3 follow 0; 2 follows 1, 3 and 2
    assert unigrams.counts.tolist() == [1, 1, 3, 1]
    found = {
        (first, int(bigrams.words[row])): int(bigrams.counts[row])
        for first in range(4)
        for row in range(bigrams.offsets[first], bigrams.offsets[first + 1])
    }
    # after end-of-text plain counts; (1 2) follows 0; (2 0) follows 1, 3 and 2; (2 2) follows 1; (3 2) follows 0
    assert found == {(0, 1): 2, (0, 3): 1, (1, 2): 1, (2, 0): 3, (2, 2): 1, (3, 2): 1}
    assert sorted(trigrams.counts.tolist()) == [1, 1, 1, 1, 1, 2]  # 0 1 2 occurs twice


@pytest.mark.parametrize("order", ORDERS)
def test_leave_one_out_equals_counting_again_without_the_token(order):
    text = small_text(120)
    model = build_kneser_ney(text, VOCAB, EOT, order)
    seen = events(text.tolist(), order)
    discounts = LiteralKneserNey(seen, order).discounts
    contexts = model.text_contexts(text, leave_one_out=True)
    prob = model.probabilities(contexts)
    counts = model.context_counts(contexts)
    for place, (context, _) in enumerate(seen):
        rest = LiteralKneserNey(seen[:place] + seen[place + 1 :], order, discounts)
        expected = [rest.prob(other, context) for other in range(VOCAB)]
        np.testing.assert_allclose(prob[place], expected, atol=1e-12, rtol=0)
        assert counts[place].tolist() == [
            sum(rest.counts[k].get(context[-k:], {}).values()) if k <= len(context) else 0 for k in range(1, order)
        ]
    log_prob = np.log(prob[np.arange(len(seen)), text[1:]])
    np.testing.assert_allclose(model.target_log_prob(text, leave_one_out=True), log_prob, atol=1e-12, rtol=0)
    assert log_prob.mean() < model.target_log_prob(text).mean() - 0.1


def test_a_long_text_is_looked_up_in_chunks_without_a_seam(monkeypatch):
    text = small_text()
    model = build_kneser_ney(text, VOCAB, EOT, 5)
    whole, left_out = model.target_log_prob(text), model.target_log_prob(text, leave_one_out=True)
    assert len(text) < _CHUNK
    monkeypatch.setattr("grouped_lm.prior.kneser_ney._CHUNK", 7)
    assert np.array_equal(model.target_log_prob(text), whole)
    assert np.array_equal(model.target_log_prob(text, leave_one_out=True), left_out)


@pytest.mark.parametrize("history", [[1, 2, 1, 1], [9, 10], [EOT]])
def test_draws_follow_the_probabilities(history):
    model = build_kneser_ney(small_text(), VOCAB, EOT, 4)
    draws = model.sample(history, np.random.default_rng(0), size=40_000)
    prob = model.probabilities([history])[0]
    observed = np.bincount(draws, minlength=VOCAB)
    assert stats.chisquare(observed, prob * len(draws)).pvalue > 0.001
    wrong = np.roll(prob, 1)
    assert stats.chisquare(observed, wrong * len(draws)).pvalue < 1e-6


@pytest.mark.parametrize("min_counts", [(1, 1, 2, 2), (1, 2, 1, 3), (2, 3, 2, 1), (1, 1, 1, 50)])
def test_a_pruned_model_is_that_of_the_definition_and_sums_to_one(min_counts):
    text = small_text(400)
    whole = build_kneser_ney(text, VOCAB, EOT, 4)
    model = build_kneser_ney(text, VOCAB, EOT, 4, min_counts)
    literal = LiteralKneserNey(events(text.tolist(), 4), 4, min_counts=min_counts)
    prob = model.probabilities(HISTORIES)
    np.testing.assert_allclose(prob.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(prob, [literal_prob(literal, history) for history in HISTORIES], atol=1e-12, rtol=0)
    expected = [np.log(literal.prob(word, context)) for context, word in events(text.tolist(), 4)]
    np.testing.assert_allclose(model.target_log_prob(text), expected, atol=1e-12, rtol=0)
    assert sum(len(level.words) for level in model.levels) < sum(len(x.words) for x in whole.levels)
    with pytest.raises(ConfigError, match="already pruned"):
        model.pruned((1, 1, 1, 60))


@pytest.mark.parametrize("min_counts", [(1, 1, 2, 2), (1, 2, 2, 1), (2, 2, 2, 2)])
def test_leave_one_out_of_a_pruned_model_equals_counting_and_pruning_again(min_counts):
    text = small_text(160)
    model = build_kneser_ney(text, VOCAB, EOT, 4, min_counts)
    seen = events(text.tolist(), 4)
    discounts = LiteralKneserNey(seen, 4).discounts
    prob = model.probabilities(model.text_contexts(text, leave_one_out=True))
    for place, (context, _) in enumerate(seen):
        rest = LiteralKneserNey(seen[:place] + seen[place + 1 :], 4, discounts, min_counts)
        np.testing.assert_allclose(prob[place], [rest.prob(other, context) for other in range(VOCAB)], atol=1e-12)
    log_prob = np.log(prob[np.arange(len(seen)), text[1:]])
    np.testing.assert_allclose(model.target_log_prob(text, leave_one_out=True), log_prob, atol=1e-12, rtol=0)


@pytest.mark.parametrize("min_counts", [(1, 1, 2, 2, 2), (1, 2, 2, 2, 2)])
def test_leave_one_out_takes_nothing_from_contexts_that_were_pruned(min_counts):
    text = small_text(160)
    model = build_kneser_ney(text, VOCAB, EOT, 5, min_counts)
    whole = model.context_counts(model.text_contexts(text))
    contexts = model.text_contexts(text, leave_one_out=True)
    counts = model.context_counts(contexts)
    assert (contexts.nodes[1:] < 0).any(), "no context was pruned"
    assert ((counts == whole) | (counts == whole - 1)).all()
    assert counts.min() == 0
    backoffs = np.stack([model.interpolation(k, contexts) for k in range(5)])
    assert np.isfinite(backoffs).all()
    assert backoffs.min() >= 0


def test_leave_one_out_needs_small_counts():
    text = small_text()
    with pytest.raises(ConfigError, match=r"pruned to \(1, 1, 3\)"):
        build_kneser_ney(text, VOCAB, EOT, 3, (1, 1, 3)).target_log_prob(text, leave_one_out=True)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("min_counts", [None, (1, 1, 2, 2)])
def test_contexts_of_rows_of_ids_are_those_of_the_text(leave_one_out, min_counts):
    text = small_text()
    model = build_kneser_ney(text, VOCAB, EOT, 4, min_counts)
    before = np.stack([np.r_[[NO_TOKEN] * 3, text][place : place + 3] for place in range(1, len(text))]).astype(int)
    contexts = model.contexts_after(before, text[1:].astype(int) if leave_one_out else None)
    expected = model.text_contexts(text, leave_one_out=leave_one_out)
    assert np.array_equal(contexts.nodes, expected.nodes)
    log_prob = model.log_prob(contexts, model.ngrams(contexts.nodes, text[1:].astype(int)))
    assert np.array_equal(log_prob, model.target_log_prob(text, leave_one_out=leave_one_out))


def test_pruning_with_all_ones_changes_nothing():
    model = build_kneser_ney(small_text(), VOCAB, EOT, 3)
    assert model.pruned((1, 1, 1)) is model


def test_a_text_shorter_than_the_longest_ngrams():
    model = build_kneser_ney(np.array([0, 1]), 4, 0, 5)
    np.testing.assert_allclose(model.probabilities([[], [0], [1, 1, 1, 1, 1]]).sum(axis=1), 1, atol=1e-12)
    assert np.exp(model.target_log_prob(np.array([0, 1]), leave_one_out=True)) == pytest.approx(1 / 4)


def test_counts_of_contexts():
    model = build_kneser_ney(np.array([0, 1, 2, 0, 1, 2, 3, 0]), 5, 0, 3)
    # (0 1) is followed twice; 1 by one token after one token; nothing is known of 4
    assert model.context_counts([[0, 1], [1], [4], [3, 4]]).tolist() == [[1, 2], [1, 0], [0, 0], [0, 0]]


def test_discounts_of_known_counts():
    counts = np.array([0] * 9 + [1] * 8 + [2] * 4 + [3] * 2 + [4] + [9])
    ratio = 8 / (8 + 8)
    expected = [0, 1 - 2 * ratio * 4 / 8, 2 - 3 * ratio * 2 / 4, 3 - 4 * ratio * 1 / 2]
    np.testing.assert_allclose(estimate_discounts(counts), expected)
    assert estimate_discounts(np.array([5, 7])).tolist() == [0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("tokens", "order", "error", "message"),
    [
        ([0, 1], 6, ConfigError, r"order must be in \[2, 5\], got 6"),
        ([0], 3, DataError, "2 to 2,147,483,647 tokens, got 1"),
        ([1, 2], 3, DataError, r"must begin with end-of-text \(0\), got 1"),
        ([0, 5], 3, DataError, r"ids must be in \[0, 4\], got 0 to 5"),
    ],
)
def test_what_cannot_be_counted_is_refused(tokens, order, error, message):
    with pytest.raises(error, match=message):
        build_kneser_ney(np.array(tokens), 5, 0, order)


def test_wrong_use_is_refused():
    text = small_text()
    model = build_kneser_ney(text, VOCAB, EOT, 3)
    with pytest.raises(DataError, match="this text was not counted"):
        model.target_log_prob(small_text(seed=4), leave_one_out=True)
    with pytest.raises(DataError, match=r"ids must be in \[0, 10\]"):
        model.probabilities([[11]])
    with pytest.raises(DataError, match=r"positions must be in \[1, 240\], got 0 to 5"):
        model.text_contexts(text, 0, 5)
    with pytest.raises(ConfigError, match=r"min_counts must be 3 numbers >= 1"):
        model.pruned((1, 2))


def test_the_package_imports_no_torch():
    code = "import sys, grouped_lm.prior.store; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
