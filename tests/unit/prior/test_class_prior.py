"""Probabilities of classes and of tokens inside a class against those of all tokens."""

import numpy as np
import pytest
from literal_kneser_ney import EOT, HISTORIES, VOCAB, small_text

from grouped_lm.errors import ConfigError
from grouped_lm.prior import build_kneser_ney
from grouped_lm.prior.classes import PADDING, ClassPrior

TO_CLASS = np.array([2, 0, 1, 1, 2, 3, 1, 0, 2, 4, 4])
"""Five classes of one to three tokens; class 4 was never seen."""


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_classes_and_members_are_sums_and_shares_of_the_tokens(order, leave_one_out):
    text = small_text()
    model = build_kneser_ney(text, VOCAB, EOT, order)
    prior = ClassPrior(model, TO_CLASS)
    contexts = model.text_contexts(text, leave_one_out=True) if leave_one_out else model.history_contexts(HISTORIES)
    tokens = model.probabilities(contexts)
    classes = np.stack([tokens[:, number == TO_CLASS].sum(axis=1) for number in range(5)], axis=1)
    np.testing.assert_allclose(np.exp(prior.class_log_prob(contexts)), classes, atol=1e-12, rtol=0)
    for number in range(5):
        wanted = np.full(len(contexts), number)
        members = np.exp(prior.member_log_prob(contexts, wanted))
        expected = tokens[:, number == TO_CLASS] / classes[:, [number]]
        size = np.count_nonzero(number == TO_CLASS)
        np.testing.assert_allclose(members[:, :size], expected, atol=1e-12, rtol=0)
        assert not members[:, size:].any()


def test_a_pruned_model_has_class_probabilities_too():
    model = build_kneser_ney(small_text(), VOCAB, EOT, 4, (1, 1, 2, 3))
    prob = np.exp(ClassPrior(model, TO_CLASS).class_log_prob(HISTORIES))
    tokens = model.probabilities(HISTORIES)
    expected = np.stack([tokens[:, number == TO_CLASS].sum(axis=1) for number in range(5)], axis=1)
    np.testing.assert_allclose(prob, expected, atol=1e-12, rtol=0)


def test_mixed_classes_in_one_batch_and_given_slots():
    model = build_kneser_ney(small_text(), VOCAB, EOT, 4)
    slots = np.array([2, 1, 0, 2, 1, 0, 1, 0, 0, 0, 1])
    prior = ClassPrior(model, TO_CLASS, slots)
    targets = np.array([1, 4, 10, 5, 6, 0, 3, 8])
    contexts = model.history_contexts(HISTORIES)
    rows = np.arange(len(targets))
    steps = prior.class_log_prob(contexts)[rows, TO_CLASS[targets]]
    steps = steps + prior.member_log_prob(contexts, TO_CLASS[targets])[rows, slots[targets]]
    np.testing.assert_allclose(steps, np.log(model.probabilities(contexts)[rows, targets]), atol=1e-12, rtol=0)
    assert prior.members[3].tolist() == [5, PADDING, PADDING]
    assert prior.members[2].tolist() == [8, 4, 0]


@pytest.mark.parametrize(
    ("to_class", "slots", "message"),
    [
        (TO_CLASS[:5], None, "token_to_class must have 11 entries"),
        (np.where(TO_CLASS == 3, 5, TO_CLASS), None, "class 3 has no token"),
        (TO_CLASS, np.zeros(VOCAB, int), "two tokens of one class the same place"),
    ],
)
def test_a_wrong_partition_is_refused(to_class, slots, message):
    with pytest.raises(ConfigError, match=message):
        ClassPrior(build_kneser_ney(small_text(), VOCAB, EOT, 2), to_class, slots)
