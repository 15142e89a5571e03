"""Runs side by side: conditions, order, columns by the names that people use."""

import csv
import io

import pytest

from grouped_lm.errors import ConfigError
from grouped_lm.report import add_ratios, comparison_table, select_rows, sort_rows, to_csv

ROWS = [
    {"run": "runs/a", "head": "dense", "seed": 0, "val/perplexity": 64.0, "throughput/tokens_per_sec": 1000.0},
    {"run": "runs/b", "head": "grouped", "seed": 0, "val/perplexity": 158.0, "throughput/tokens_per_sec": 12000.0},
    {"run": "runs/c", "head": "grouped", "seed": 10, "val/perplexity": None, "throughput/tokens_per_sec": 11000.0},
]


def names(rows):
    return "".join(row["run"][-1] for row in rows)


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["head=grouped"], "bc"),
        (["head!=grouped"], "a"),
        (["seed=0"], "ab"),
        (["seed=10.0"], "c"),
        (["perplexity<100"], "a"),
        (["val/perplexity > 100"], "b"),
        (["tokens/s>1,000", "head=grouped"], "bc"),
        (["tokens_per_sec<11500", "seed>5"], "c"),
        (["head=nothing"], ""),
    ],
)
def test_conditions(conditions, left):
    assert names(select_rows(ROWS, conditions)) == left


@pytest.mark.parametrize("condition", ["head", "hed=dense", "perplexity<low"])
def test_conditions_that_cannot_be_met_or_read(condition):
    with pytest.raises(ConfigError):
        select_rows(ROWS, [condition])


def test_order_with_missing_figures_last():
    assert names(sort_rows(ROWS, "perplexity")) == "abc"
    assert names(sort_rows(ROWS, "perplexity", reverse=True)) == "bac"
    assert names(sort_rows(ROWS, "tokens/s", reverse=True)) == "bca"
    with pytest.raises(ConfigError, match="did you mean perplexity"):
        sort_rows(ROWS, "perplexty")


def test_csv_comes_back():
    back = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert [row["head"] for row in back] == ["dense", "grouped", "grouped"]
    assert float(back[1]["val/perplexity"]) == 158.0


def test_ratios_compare_like_with_like():
    rows = [row | {"model": "m", "data": "d", "tokenizer": "t", "trainer/tokens": 5} for row in ROWS]
    rows.append(rows[1] | {"model": "other"})
    add_ratios(rows)
    assert [row.get("throughput/vs_dense") for row in rows] == [1.0, 12.0, 11.0, None]


def test_what_is_the_same_in_all_runs_stands_in_the_title():
    table = comparison_table([row | {"model": "gpt2-1m"} for row in ROWS])
    assert "model gpt2-1m" in str(table.title)
    assert [column.header for column in table.columns] == ["", "a", "b", "c"]
    assert len(comparison_table([*ROWS, *ROWS]).rows) == 6
