"""The figures of a text, against counts made by hand."""

import numpy as np
import pytest

from grouped_lm.advise import text


def test_figures_are_those_of_counts_made_by_hand(monkeypatch):
    monkeypatch.setattr(text, "SIZES", (1, 3, 4))
    figures = text.measure_counts(np.array([1, 0, 5, 3, 0, 1]), np.array([2, 1, 4, 0, 1, 0]))
    assert figures == {
        "vocab_size": 6,
        "tokens": 10,
        "types": 4,
        "seen_once": 2,
        "coverage": {1: 0.5, 3: 0.9},  # all four types cover everything, which is no news
        "valid_tokens": 8,
        "valid_types": 4,
        "valid_unseen": 0.25,
    }


def test_a_text_without_rare_tokens_has_none():
    figures = text.measure_counts(np.array([4, 4]), np.array([1, 1]))
    assert (figures["seen_once"], figures["valid_unseen"], figures["coverage"]) == (0, 0.0, {})


def test_the_table_has_a_line_per_figure():
    counts = text.measure_counts(np.arange(300), np.ones(300, int))
    figures = text.TextFigures(documents=3, bytes_per_token=4.25, passes=1.5, valid_documents=1, **counts)
    cells = dict(figures.table("mine", 400).cells())
    assert cells["share of the 256 most frequent"] == f"{sum(range(44, 300)) / sum(range(300)):.1%}"
    assert cells["passes in 400 steps"] == "1.50"
    assert cells["types (different tokens)"] == "299 of 300"
    assert float(cells["validation: tokens never seen in training"].rstrip("%")) == pytest.approx(100 / 300, abs=1e-3)
