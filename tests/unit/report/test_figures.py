"""Plots and the theory in them; drawn from made-up rows, looked at as files."""

import builtins
import math

import pytest
import torch

from grouped_lm.heads import GroupedConfig, build_head
from grouped_lm.measure.memory import GIB, measure_head_peak_gib
from grouped_lm.plan.theory import best_group_size, estimate_grouped_head_bytes
from grouped_lm.report.figures import write_plots
from grouped_lm.report.series import collect_points, describe
from grouped_lm.report.style import PlotLibraryError

NAMES = {
    "perplexity-by-group-size",
    "head-memory-by-group-size",
    "speed-by-group-size",
    "pareto-loss-speed",
    "pareto-loss-memory",
}


def make_row(head="grouped", size=64, seed=0, **others) -> dict:
    loss = 4.0 + 8 / (size or 1024) + 0.01 * seed
    return {
        "run": f"{head}-{size}-{seed}",
        "state": "complete",
        "model": "gpt2-1m",
        "head": head,
        "group_size": size,
        "grouping": "merge_rank" if size else None,
        "data": "tinytales",
        "tokenizer": "gpt2",
        "vocab_size": 50257,
        "seed": seed,
        "model.n_embd": 64,
        "model.block_size": 256,
        "train.max_steps": 300,
        "train.micro_batch_size": 8,
        "train.grad_accum_steps": 1,
        "val/loss": loss,
        "val/perplexity": math.exp(loss),
        "throughput/tokens_per_sec": 9000.0 - (size or 8000),
        "memory/peak": 0.1 + (size or 10000) / 1e4,
        "memory/peak_head_gib": estimate_grouped_head_bytes(2048, 64, 50257, size or 50257) / GIB,
    } | others


ROWS = [make_row(size=size, seed=seed) for size in (64, 256, 1024) for seed in (0, 1)] + [make_row("dense", None)]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    first, second = write_plots(ROWS, tmp_path / "a"), write_plots(ROWS, tmp_path / "b")
    assert {path.stem for path in first} == NAMES
    assert {path.suffix for path in first} == {".svg", ".png"}
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in first)  # nothing temporary
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.read_bytes()[:4] in (b"\x89PNG", b"<?xm")
        assert b"dc:date" not in one.read_bytes()


def test_a_plot_without_points_is_left_out(tmp_path):
    assert write_plots([], tmp_path / "none") == []
    assert write_plots([row | {"state": "failed"} for row in ROWS], tmp_path / "none") == []
    assert write_plots(ROWS[:1], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    heads = [make_row("dense", None), make_row("film", 224, **{"memory/peak_head_gib": None})]
    assert {path.stem for path in write_plots(heads, tmp_path / "two")} == {"pareto-loss-speed", "pareto-loss-memory"}


def test_missing_matplotlib_is_one_line(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(PlotLibraryError, match=r"pip install 'grouped-lm\[report\]'"):
        write_plots(ROWS, tmp_path)


def test_seeds_are_one_point_and_kinds_are_series():
    (first, *_), everything = collect_points(ROWS[:2]), collect_points(ROWS)
    assert len(first.rows) == 2
    low, high = first.spread("val/loss")
    assert low == pytest.approx(0.005)
    assert high == pytest.approx(0.005)
    assert [point.label() for point in everything] == ["dense", "grouped S=64", "grouped S=256", "grouped S=1,024"]
    assert describe(everything) == "gpt2-1m on tinytales, 300 steps of 2,048 tokens, mean and range of 2 seeds"
    more = [*ROWS, make_row(data="wikitext"), make_row(**{"optim.lr": 0.01}), make_row(**{"optim.lr": 0.1})]
    labels = {point.series for point in collect_points(more)}
    assert labels == {
        "dense tinytales",
        "grouped tinytales",
        "grouped wikitext",
        "grouped tinytales lr 0.01",
        "grouped tinytales lr 0.1",
    }


def test_only_runs_that_differ_in_their_seed_alone_are_one_point():
    rows = [
        make_row(head, size, seed, **{"model.dropout": dropout, "train.z_loss": 0.0})
        for head, size in (("dense", None), ("grouped", 64))
        for dropout in (0.0, 0.1)
        for seed in (0, 1, 2)
    ]
    twice = make_row("dense", None, 0, **{"model.dropout": 0.0, "train.z_loss": 0.0, "run": "again"})
    points = collect_points([*rows, twice])
    assert {point.label(): [row["seed"] for row in point.rows] for point in points} == {
        f"{head} model.dropout={dropout}{size}": [0, 1, 2]
        for head, size in (("dense", ""), ("grouped", " S=64"))
        for dropout in (0.0, 0.1)
    }
    assert "again" not in {row["run"] for point in points for row in point.rows}
    same_files = [make_row(**{"text": text, "data.train": "train.txt"}) for text in ("3f", "a7")]
    assert [point.series for point in collect_points(same_files)] == ["grouped text=3f", "grouped text=a7"]
    assert len({point.text for point in collect_points(same_files)}) == 2
    device = [make_row(device=device) for device in ("cpu", "H100")]
    assert [point.series for point in collect_points(device)] == ["grouped device=H100", "grouped device=cpu"]


def test_theory_by_hand():
    # N 2, D 3, V 4, S 2, so G 2 and C 2. Twice states and weights: 2 * (6 + 12 + 2) = 40 floats; tables 5 * 4 = 20 and,
    # of ids, 2 * 4; a chunk: 2 * 4 * 2 = 16. Integers: 5 * 2 = 10 of 8 bytes. Mask: 4 bytes.
    assert estimate_grouped_head_bytes(2, 3, 4, 2) == 4 * (40 + 20 + 8 + 16) + 8 * 10 + 4


@pytest.mark.parametrize("sizes", [(512, 32, 5003), (128, 16, 5003), (64, 128, 1009), (1000, 64, 1000)])
@pytest.mark.parametrize("group_size", [2, 17, 32, 71, 256])
def test_theory_is_what_the_allocator_sees(sizes, group_size):
    n_tokens, n_embd, vocab_size = sizes
    head = build_head(GroupedConfig(group_size=group_size), n_embd, vocab_size)
    measured = measure_head_peak_gib(head, n_tokens, n_embd, vocab_size, torch.device("cpu")) * GIB
    assert estimate_grouped_head_bytes(*sizes, group_size) == pytest.approx(measured, rel=0.02)


def test_theory_is_least_near_the_root_of_v():
    for vocab_size in (1009, 50257, 200_000):
        best = best_group_size(65_536, 64, vocab_size)
        assert math.sqrt(vocab_size / 2) * 0.98 <= best <= math.sqrt(vocab_size)
    few = [estimate_grouped_head_bytes(64, 128, 1009, size) for size in range(1, 1010)]
    assert best_group_size(64, 128, 1009) == few.index(min(few)) + 1
    assert best_group_size(1, 1, 1) == 1
