"""The gap to the full softmax along training: means over seeds, the steps that all runs share, the trend."""

import math

import pytest
from made_up import make_run

from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import TABLES
from grouped_lm.reproduction.gaps import describe_trends, gaps_of, trend_of
from grouped_lm.reproduction.tables import gaps_table
from grouped_lm.reproduction.verdicts import setting_of

TOKENS = (100_000, 200_000, 400_000, 800_000)


def curves(*kinds):
    """Evidence in which `grouped` is 1 nat behind dense at first, and 0.1 nats less with each doubling."""
    evidence = {name: [] for name in TABLES}
    for kind in kinds:
        for seed in range(2):
            run = make_run(kind, seed)
            evidence["runs"].append(run)
            for n in TOKENS:
                behind = 1.0 - 0.1 * math.log2(n / TOKENS[0]) if kind == "grouped" else 0.0
                row = {"run": run["run"], "tokens": n, "val_loss": 5.0 + 0.01 * seed + behind}
                evidence["curves"] += [row, {"run": run["run"], "tokens": n + 5, "train_loss": 4.0}]
    return evidence


def gaps(evidence):
    return list(gaps_of(load_claims(), evidence, setting_of(evidence["runs"][0])))


def test_the_gap_is_the_difference_of_means_over_seeds():
    (gap,) = gaps(curves("dense", "grouped"))
    assert gap.gaps == pytest.approx(dict(zip(TOKENS, (1.0, 0.9, 0.8, 0.7), strict=True)))
    assert gap.trend == pytest.approx(-0.1)
    assert describe_trends([gap]) == "grouped +0.700 nats, -0.100 per doubling of the tokens"


def test_a_point_that_one_run_lacks_is_left_out():
    evidence = curves("dense", "grouped")
    lacking = evidence["runs"][-1]["run"]
    evidence["curves"] = [r for r in evidence["curves"] if r["run"] != lacking or r["tokens"] != TOKENS[1]]
    (gap,) = gaps(evidence)
    assert list(gap.gaps) == [TOKENS[0], *TOKENS[2:]]


def test_without_dense_there_is_no_gap():
    assert gaps(curves("grouped")) == []
    assert gaps_table(load_claims(), curves("grouped")).rows == []


def test_the_trend_needs_three_points_in_the_last_two_doublings():
    assert trend_of({1: 1.0, 8: 0.5, 10: 0.4}) is None
    assert trend_of({1: 9.0, 4: 0.6, 8: 0.5, 16: 0.4}) == pytest.approx(-0.1)


def test_the_table_has_a_row_for_each_number_of_tokens():
    table = gaps_table(load_claims(), curves("dense", "grouped", "shortlist"))
    assert [row["tokens"] for row in table.rows] == list(TOKENS)
    assert {"paper", "ours"} <= table.rows[0].keys()
    assert "per doubling" in table.note
