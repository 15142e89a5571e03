"""Every measure against its definition, on texts small enough to count by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from head_cases import plain_shortlist

from grouped_lm.config import Config, ModelConfig, TokenizerConfig
from grouped_lm.errors import ConfigError
from grouped_lm.evaluate.diagnose import diagnose
from grouped_lm.evaluate.metrics import (
    by_frequency,
    by_group,
    by_position,
    calibration_error,
    sample_metrics,
    sum_by_story,
    summarise,
)
from grouped_lm.evaluate.scoring import ContextRule, TokenScores, list_windows, score_tokens
from grouped_lm.heads import AdaptiveConfig, ClassFullConfig, DenseConfig, GroupedConfig
from grouped_lm.models.lm import build_lm

T = 8
TOKENS = np.array([256, 1, 2, 3, 256, *range(10, 31), 256, 7, 256], np.uint16)
STARTS = np.array([1, 5, 27])


def small_model(head):
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=T)
    model = build_lm(Config(model=shape, head=head, tokenizer=TokenizerConfig(name="bytes"))).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model


def scores_of(nll, **columns) -> TokenScores:
    nll = np.asarray(nll, float)
    wrong = np.zeros(len(nll), bool)
    defaults = {"targets": np.zeros(len(nll), int), "position": np.arange(len(nll)), "top1": wrong, "top5": wrong}
    return TokenScores(nll=nll, **(defaults | {"confidence": np.ones(len(nll))} | columns))


@pytest.mark.parametrize("per_story", [False, True])
@pytest.mark.parametrize("stride", [None, 1, 3, T])
def test_windows_target_every_token_once_with_the_context_they_promise(stride, per_story):
    rule = ContextRule(window=T, stride=stride, per_story=per_story)
    windows = list_windows(len(TOKENS), STARTS, rule)
    targets = [t for w in windows for t in range(w.first + 1, w.stop + 1)]
    assert targets == list(range(1, len(TOKENS)))
    for w in windows:
        assert w.stop - w.start <= T
        begin = max(s - 1 for s in STARTS if s - 1 <= w.first) if per_story else 0
        if stride in (1, 3) and w.first > begin:
            assert w.start == max(begin, w.stop - T)
        else:
            assert w.start == w.first
        if per_story:
            assert TOKENS[begin] == 256
            assert 256 not in TOKENS[w.start + 1 : w.stop]


def test_a_stride_beyond_the_window_is_refused():
    with pytest.raises(ConfigError, match="--stride must be in"):
        ContextRule(window=T, stride=T + 1)


@pytest.mark.parametrize(
    "head",
    [
        DenseConfig(),
        GroupedConfig(),
        ClassFullConfig(),
        plain_shortlist(shortlist_size=20),
        AdaptiveConfig(cutoffs=[20, 90]),
    ],
    ids=lambda c: c.name,
)
@pytest.mark.parametrize("rule", [ContextRule(window=T), ContextRule(window=T, stride=3, per_story=True)], ids=str)
@torch.no_grad()
def test_scores_are_those_of_each_token_read_alone(head, rule):
    model = small_model(head)
    windows = list_windows(len(TOKENS), STARTS, rule)
    found = score_tokens(model, TOKENS, windows, batch_size=3, device=torch.device("cpu"))
    assert found.targets.tolist() == TOKENS[1:].tolist()
    for window in windows:
        ids = torch.from_numpy(TOKENS[window.start : window.stop].astype(np.int64))[None]
        joint = model.head.log_prob(model.hidden(ids))[0]
        for place in range(window.first, window.stop):
            row, target = joint[place - window.start], int(TOKENS[place + 1])
            assert found.nll[place] == pytest.approx(-row[target].item(), abs=1e-4)
            assert found.position[place] == place - window.start
            order = row.argsort(descending=True, stable=True).tolist()
            assert found.top1[place] == (order[0] == target)
            assert found.top5[place] == (target in order[:5])
            assert found.confidence[place] == pytest.approx(row.max().exp().item(), abs=1e-4)
    if found.group_nll is not None:
        np.testing.assert_allclose(found.group_nll + found.token_nll, found.nll, atol=1e-5)
        assert found.group_confidence is not None


def test_units_of_the_loss():
    scores = scores_of([1.0, 2.0, 3.0], top1=np.array([True, False, False]), group_nll=np.array([0.5, 1, 1.5]))
    figures = summarise(scores, text_bytes=6, words=2, is_text=np.array([True, True, False]))
    assert figures["val/loss"] == 2.0
    assert figures["val/perplexity"] == pytest.approx(math.e**2)
    assert figures["val/bits_per_byte"] == pytest.approx(6 / math.log(2) / 6)
    assert figures["val/perplexity_per_word"] == pytest.approx(math.exp(3 / 2))
    assert figures["val/loss_group"] == 1.0
    assert figures["val/top1_accuracy"] == pytest.approx(1 / 3)


def test_calibration_error():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.31, 0.31])
    correct = np.array([True, True, True, False, False, False])
    assert calibration_error(confidence, correct) == pytest.approx((4 * 0.20 + 2 * 0.31) / 6)
    draws = np.random.default_rng(0)
    sure = draws.uniform(size=100_000)
    assert calibration_error(sure, draws.uniform(size=100_000) < sure) < 0.01


def test_deciles_hold_equal_shares_and_the_never_seen_stand_apart():
    counts = np.array([0, 50, 10, 10, 10, 10, 5, 5])
    rows = by_frequency(scores_of([1.0] * 8, targets=np.arange(8)), counts)
    names = {row["name"]: row["tokens"] for row in rows}
    assert names == {
        "decile 3": 1,  # half of all occurrences: their middle is at 25 %
        "decile 6": 1,
        "decile 7": 1,
        "decile 8": 1,
        "decile 9": 1,
        "decile 10 (rarest)": 2,
        "never seen in training": 1,
    }


def test_means_by_position_and_group():
    scores = scores_of([1.0, 2.0, 4.0, 9.0], targets=np.array([0, 1, 2, 2]))
    assert [(r["name"], r["loss"]) for r in by_position(scores)] == [("1", 1.0), ("2-3", 3.0), ("4-7", 9.0)]
    rows = by_group(scores, np.array([-1, 1, 1]))
    assert [(r["name"], r["tokens"], r["loss"]) for r in rows] == [("alone", 1, 1.0), ("group 1", 3, 5.0)]


def test_sums_by_story():
    nll = np.arange(len(TOKENS) - 1.0)
    sums, counts = sum_by_story(nll, STARTS)
    assert counts.tolist() == [4, 22, 2]
    assert sums.tolist() == [6, sum(range(4, 26)), 26 + 27]


def test_measures_of_written_texts():
    found = sample_metrics([[1, 2, 1, 2, 1, 2, 9], [3, 3]], eot_id=9)
    assert found["sample/distinct_1"] == 3 / 8
    assert found["sample/distinct_2"] == 3 / 6
    assert found["sample/repetition_4"] == 1 / 3
    assert found["sample/end_of_text"] == 0.5
    assert found["sample/mean_tokens"] == 4


def figures(group: float, token: float, accuracy: float) -> dict:
    return {
        "val/loss": group + token,
        "val/loss_group": group,
        "val/loss_token": token,
        "val/group_accuracy": accuracy,
        "val/token_in_group_accuracy": 0.2,
    }


@pytest.mark.parametrize(
    ("values", "sizes", "words"),
    [
        ((0.2, 0.1, 0.95), (225, 224), []),
        ((2.0, 1.0, 0.37), (225, 224), ["under the paper's 90%"]),
        ((1.0, 2.0, 0.37), (225, 224), ["not what is bad here", "cost more (2.000 nats, right in 20.0%)"]),
        ((0.1, 2.0, 0.95), (2, 25_129), ["cost more", "saves most memory"]),
    ],
)
def test_diagnosis(values, sizes, words):
    head = SimpleNamespace(vocab_size=50_257, n_group=sizes[0], group_size=sizes[1])
    found = diagnose(figures(*values), head)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))
    assert diagnose({"val/loss": 3.0}, head) == []
