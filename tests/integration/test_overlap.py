"""The overlap of two texts equals a count by hand, and near-duplicates are left out of what is written."""

import json
import random

import numpy as np
import pytest

from grouped_lm.data.overlap import measure_overlap
from grouped_lm.data.text import EOT_TEXT


def shares_by_hand(train, valid, n):
    def grams(text):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    known = {gram for text in train for gram in grams(text)}
    found = [[gram in known for gram in grams(text)] for text in valid]
    return [sum(own) / len(own) if own else 0.0 for own in found], sum(map(sum, found)) / max(1, sum(map(len, found)))


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_shares_equal_a_literal_count(n):
    draw = random.Random(n)
    texts = [" ".join(draw.choices(["a", "B,", "c!", "dog"], k=draw.randrange(1, 40))) for _ in range(60)]
    train, valid = texts[:40], [*texts[40:], texts[0].upper() + " ?"]
    overlap = measure_overlap(train, valid, n)
    shares, total = shares_by_hand(train, valid, n)
    np.testing.assert_allclose(overlap.shares, shares)
    assert overlap.total == pytest.approx(total)
    assert measure_overlap([], valid, n).shares.tolist() == [0.0] * len(valid)


def test_near_duplicates_are_left_out(gvc, workdir):
    story = "Once upon a time a small fox lived in the green wood and ate red apples."
    new = "Nobody had ever seen a fish that could read the newspaper before breakfast."
    (workdir / "train.txt").write_text(story)
    (workdir / "valid.txt").write_text(f"{story.upper()}\n{EOT_TEXT}\n{new}\n")
    outcome = gvc("data", "overlap", "train.txt", "valid.txt", "--out", "fresh.txt")
    assert outcome.out.splitlines() == [
        "valid.txt: 60.0% of its n-grams of 8 words are in train.txt too",
        "1 of 2 documents have more than 20%",
        "fresh.txt: the 1 others",
    ]
    assert [part.strip() for part in (workdir / "fresh.txt").read_text().split(EOT_TEXT)] == [new, ""]
    figures = json.loads(gvc("data", "overlap", "train.txt", "valid.txt", "--json").out)
    assert figures["shares"] == [1.0, 0.0]


def test_a_small_share_is_printed_as_it_was_given(gvc, workdir):
    (workdir / "a.txt").write_text("one two three four five six seven eight nine")
    for given, printed in (("0.005", "0.5%"), ("0.07", "7%"), ("1", "100%")):
        outcome = gvc("data", "overlap", "a.txt", "a.txt", "--at-most", given)
        assert f"documents have more than {printed}\n" in outcome.out


@pytest.mark.parametrize("name", ["fresh.jsonl", "fresh", "fresh.parquet"])
def test_an_out_that_is_no_txt_is_refused_before_anything_is_read(gvc, workdir, name):
    refused = gvc("data", "overlap", "not-there.txt", "nor-this.txt", "--out", name)
    assert refused.code == 2
    assert f"--out must end in .txt, got {name}" in refused.err
    assert list(workdir.iterdir()) == []


def test_nothing_left_and_nothing_overwritten(gvc, workdir):
    (workdir / "a.txt").write_text("one two three four five six seven eight nine")
    refused = gvc("data", "overlap", "a.txt", "a.txt", "--out", "b.txt")
    assert refused.code == 3
    assert "no document is left for b.txt: give a larger --at-most" in refused.err
    (workdir / "b.txt").write_text("mine")
    refused = gvc("data", "overlap", "a.txt", "a.txt", "--at-most", "1", "--out", "b.txt")
    assert refused.code == 3
    assert "b.txt is there and holds something else" in refused.err
    assert (workdir / "b.txt").read_text() == "mine"
