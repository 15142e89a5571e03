"""Merge order against frequency: known orders, ties, texts of nothing; and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from grouped_lm.grouping.merge_order import measure_merge_order
from grouped_lm.reproduction.evidence import read_csv


def test_orders_that_are_known():
    falling = measure_merge_order(np.arange(100, 0, -1))
    assert falling["rank_correlation"] == pytest.approx(1.0)
    assert falling["low"] > 0.99
    assert measure_merge_order(np.array([0, 5, 5, 5, 5]))["unigram_nats"] == pytest.approx(np.log(4))
    assert measure_merge_order(np.arange(1, 101))["rank_correlation"] == pytest.approx(-1.0)
    assert measure_merge_order(np.arange(100, 0, -1), first=10)["share_of_first"] == pytest.approx(955 / 5050)


def test_only_ids_that_occur_count_and_the_interval_holds_what_it_says():
    counts = np.zeros(1000, np.int64)
    counts[[5, 50, 200, 300, 999]] = [9, 7, 8, 2, 1]
    figures = measure_merge_order(counts, first=100)
    assert (figures["ids"], figures["tokens"], figures["vocab_size"]) == (5, 27, 1000)
    assert figures["rank_correlation"] == pytest.approx(
        stats.spearmanr([0, 1, 2, 3, 4], [-9, -7, -8, -2, -1]).statistic
    )
    assert (figures["share_of_first"], figures["share_of_top"]) == (16 / 27, 1.0)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):  # ranks that have nothing to do with ids
        figures = measure_merge_order(rng.permutation(200) + 1)
        inside += figures["low"] <= 0 <= figures["high"]
    assert 270 <= inside <= 298


@pytest.mark.parametrize("counts", [np.zeros(10, np.int64), np.array([3, 0, 0]), np.full(20, 7)])
def test_where_nothing_can_be_said_the_interval_is_everything(counts):
    figures = measure_merge_order(counts)
    assert (figures["low"], figures["high"]) == (-1.0, 1.0)
    json.dumps(figures, allow_nan=False)


def test_the_command(gvc, texts):
    words = ["data=text", "data.name=tales", f"data.train={texts['train']}", f"data.valid={texts['valid']}"]
    assert "tales: rank correlation" in gvc("data", "order", *words, "--out", "new/order.csv").out
    figures = json.loads(gvc("data", "order", *words, "--json").out)
    assert read_csv(Path("new/order.csv")) == [figures]
    assert figures["tokenizer"] == "gpt2"
    assert figures["ids"] < 100


def test_the_command_counts_no_more_ids_than_there_are(gvc, texts):
    words = ["data=text", f"data.train={texts['train']}", f"data.valid={texts['valid']}", "tokenizer=bytes"]
    assert "the first 257 ids hold 100.0% of" in gvc("data", "order", *words).out
