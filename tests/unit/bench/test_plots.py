"""The plots of a bench, of rows in which figures are missing."""

from matplotlib.colors import to_hex

from grouped_lm.bench.plots import suite_plots, write_bench_plots
from grouped_lm.report.style import make_figure, styled_matplotlib, styles_by_head


def head_row(head, **others):
    row = {"n_tokens": 4096, "n_embd": 128, "vocab_size": 50257, "head": head, "ms": 2.0, "ms_q1": 1.9, "ms_q3": 2.1}
    return row | {"peak_bytes": 2**30, "tied_table_bytes": 2**20, "floor_bytes": 2**25} | others


def test_a_peer_that_was_timed_but_not_checked_has_no_bar_of_memory(tmp_path):
    failed = {key: value for key, value in head_row("dense, CCE").items() if not key.endswith("_bytes")}
    drawn = write_bench_plots("heads", [head_row("dense"), failed], tmp_path)
    assert {path.stem for path in drawn} == {"bench-heads-time-n4096-d128", "bench-heads-memory-n4096-d128"}
    assert "dense, CCE" in (tmp_path / "bench-heads-time-n4096-d128.svg").read_text()
    assert "dense, CCE" not in (tmp_path / "bench-heads-memory-n4096-d128.svg").read_text()
    assert list(suite_plots("heads", [failed])) == ["heads-time-n4096-d128"]


def test_two_vocabularies_are_two_plots():
    names = list(suite_plots("heads", [head_row("dense"), head_row("dense", vocab_size=128256)]))
    assert names == [f"heads-{kind}-n4096-d128{end}" for end in ("", "-v128256") for kind in ("time", "memory")]


def test_steps_of_which_none_was_run_have_no_plot_of_time(tmp_path):
    shape = {"part": "step", "model": "gpt2-3m", "micro_batch_size": 2, "block_size": 128, "head": "dense"}
    rows = [shape | {"vocab_size": size, "predicted_bytes": 9 * size} for size in (10_000, 50_257)]
    drawn = write_bench_plots("vocab", rows, tmp_path)
    assert {path.stem for path in drawn} == {"bench-vocab-memory"}
    assert list(suite_plots("vocab", [row | {"ms": 3.0} for row in rows])) == ["vocab-memory", "vocab-time"]


def test_bars_of_runs_have_the_colours_of_their_heads():
    heads = ["dense", "grouped", "shortlist"]
    rows = [
        {"batch_size": 1, "way": "plain", "head": f"runs/x/{n}", "run_head": h, "head_ms": 2.0}
        for n, h in enumerate(heads)
    ]
    with styled_matplotlib():
        figure = make_figure(suite_plots("decode", rows)["decode-plain-b1"])
    bars = [to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches]
    styles = styles_by_head(heads)
    assert bars == [to_hex(styles[head].color) for head in heads]
    assert len(set(bars)) == 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [row["head"] for row in rows]
