"""`gvc plot` and `gvc diff`: figures and differences of runs, from their folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_report import make_run

from grouped_lm.evaluate.significance import compare_checkpoints
from grouped_lm.heads import DenseConfig, GroupedConfig
from grouped_lm.report.curves import BITS, MINUTES, NATS, TOKENS, draw_curves, names_of_runs, read_curve, write_curves
from grouped_lm.report.style import make_figure, styled_matplotlib
from grouped_lm.runs.table import collect_runs
from grouped_lm.system.files import write_json

PLACE = {"commit": "a" * 40, "cpu": "one", "threads": 1, "libraries": {"torch": "2.13"}, "python": "3.11"}


def logged(offset: float = 0.0, validations: int = 3) -> list[dict]:
    """Rows of metrics.jsonl of 100 steps of 600 tokens, at 36,000 tokens per minute."""
    rows: list[dict] = []
    for step in range(10, 101, 10):
        at = {"trainer/step": step, "trainer/tokens": 600 * step}
        rows.append(at | {"train/loss": 5 + offset + 10 / step, "throughput/tokens_per_sec": 600.0})
        if step >= 110 - 10 * validations:
            rows.append(
                at | {"val/loss": 5.5 + offset + 10 / step, "val/bits_per_byte": (5.5 + offset + 10 / step) / 4}
            )
    return rows


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    paths = []
    for number, (name, head) in enumerate((("dense", DenseConfig()), ("grouped", GroupedConfig(group_size=64)))):
        rows = logged(0.1 * number)
        last = {"state": "complete", "val/perplexity": 270.0, "memory/peak_tensor_gib": 0.5 - 0.2 * number}
        paths.append(make_run(tmp_path / "runs" / name, head, rows, {"train.max_steps": 100}, **rows[-1], **last))
        place = PLACE | ({"cpu": "two", "commit": "b" * 40} if number else {})
        (paths[-1] / "environment.json").write_text(json.dumps(place))
    return paths


def test_case_24_plot_writes_three_figures(gvc, pair, tmp_path):
    outcome = gvc("plot", *map(str, pair), "--out", "drawn")
    assert outcome.code == 0, outcome.err
    names = [f"drawn/loss-{x}.{kind}" for x in ("tokens", "minutes", "memory") for kind in ("svg", "png")]
    assert outcome.out.split() == names
    assert all(Path(name).stat().st_size > 5_000 for name in names)
    text = Path("drawn/loss-tokens.svg").read_text()
    assert all(word in text for word in ("dense", "grouped", "Validation loss", NATS))


def test_case_24_plot_has_tokens_minutes_and_losses(pair):
    row = collect_runs(pair)[0]
    curve = read_curve(row, "dense", in_bits=False)
    tokens, losses = curve.points(TOKENS, "train")
    assert (tokens[0], tokens[-1]) == (6_000, 60_000)
    assert losses == pytest.approx([5 + 10 / step for step in range(10, 101, 10)])
    assert curve.points(MINUTES, "train")[0][-1] == pytest.approx(60_000 / 600 / 60)
    assert curve.points(TOKENS, "valid")[0] == [48_000, 54_000, 60_000]
    assert curve.loss == "valid"


def test_case_24_plot_of_one_validation_draws_the_training_loss(tmp_path):
    path = make_run(tmp_path / "one", DenseConfig(), logged(validations=1))
    (row,) = collect_runs([path])
    curve = read_curve(row, "dense", in_bits=False)
    assert curve.loss == "train"
    with styled_matplotlib():
        figure = make_figure(lambda axes: draw_curves(axes, [curve], TOKENS, NATS, ""))
    assert figure.axes[0].get_title(loc="left") == "Training loss, validation as dots"
    assert figure.axes[0].get_ylim()[1] < 6.2  # the first losses do not hide the others


def test_case_24_plot_draws_runs_of_counts_which_have_no_training_loss(gvc, tmp_path):
    rows = [{key: value for key, value in row.items() if key != "train/loss"} for row in logged(validations=1)]
    path = make_run(tmp_path / "counts", DenseConfig(), rows)
    drawn = gvc("plot", str(path), "--out", str(tmp_path / "plots"))
    assert drawn.code == 0, drawn.err
    assert "loss-tokens.svg" in drawn.out


def test_case_24_plot_of_several_tokenizers_is_in_bits_per_byte(pair, tmp_path):
    other = make_run(tmp_path / "bytes", DenseConfig(), logged(), {"tokenizer.name": "bytes"})
    rows = collect_runs([pair[0], other])
    write_curves(rows, tmp_path / "plots")
    assert BITS in (tmp_path / "plots" / "loss-tokens.svg").read_text()
    curve = read_curve(rows[0], "dense", in_bits=True)
    assert curve.points(TOKENS, "valid")[1][-1] == pytest.approx(5.6 / 4)
    assert curve.points(TOKENS, "train")[1][-1] == pytest.approx(5.1 / 4)


def test_case_24_plot_says_which_run_has_no_bits_per_byte_yet(gvc, pair, tmp_path):
    first = [row for row in logged() if "val/loss" not in row]
    make_run(tmp_path / "runs" / "new", DenseConfig(), first, {"tokenizer.name": "bytes"})
    why = "tokenizers differ, and it has no validation yet, which says how many bytes its tokens have"
    drawn = gvc("plot", "runs/dense", "runs/new", "--out", "drawn")
    assert (drawn.code, drawn.err.splitlines()[0]) == (0, f"gvc: warning: runs/new is left out: {why}")
    assert "loss-tokens.svg" in drawn.out
    make_run(tmp_path / "runs" / "other", DenseConfig(), first)
    refused = gvc("plot", "runs/other", "runs/new", "--out", "none")
    assert (refused.code, refused.out) == (3, "")
    assert refused.err.splitlines()[-1] == "gvc: error: no run has a loss that can be drawn: name runs that have"
    assert not (tmp_path / "none").exists()


def test_case_24_plot_names_runs_by_what_differs(pair, tmp_path):
    again = make_run(tmp_path / "again", GroupedConfig(group_size=128), logged(), {"train.max_steps": 100})
    assert names_of_runs(collect_runs([*pair, again])) == ["dense", "grouped S=64", "grouped S=128"]
    assert len(set(names_of_runs(collect_runs([*pair, again]) * 2))) == 3  # the same folders twice


def test_case_24_plot_without_a_loss_is_one_line(gvc, tmp_path):
    make_run(tmp_path / "runs" / "new", DenseConfig(), ())
    outcome = gvc("plot", "runs/new")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == "gvc: error: no loss is logged in runs/new: wait for the first row of metrics.jsonl\n"


@pytest.mark.parametrize("content", [None, b"", b'null\n3\n{"a": 1}\n\xff\xfe\n{"trainer/tokens": "x"}\n{"trainer/to'])
def test_case_24_plot_of_a_run_that_lost_its_metrics(gvc, pair, content):
    result = json.loads((pair[0] / "result.json").read_text())
    (pair[0] / "result.json").write_text(json.dumps(result | {"train/loss": 5.1}))  # as a whole run has it
    metrics = pair[0] / "metrics.jsonl"
    metrics.unlink() if content is None else metrics.write_bytes(content)
    alone = gvc("plot", "runs/dense")
    assert (alone.code, alone.out) == (3, "")
    assert alone.err.splitlines() == [
        "gvc: warning: runs/dense is left out: its metrics.jsonl is missing or has no rows",
        "gvc: error: no run has rows in its metrics.jsonl: name runs that have",
    ]
    assert not (pair[0] / "plots").exists()


def test_case_24_plot_into_a_picture_names_the_folder(gvc, pair):
    refused = gvc("plot", "runs/dense", "--out", "loss.png")
    assert (refused.code, refused.out) == (2, "")
    assert "--out takes a folder, for several files, got loss.png: write --out loss" in refused.err
    assert not Path("loss.png").exists()


def test_case_24_diff_shows_keys_figures_and_places(gvc, pair):
    out = gvc("diff", "runs/dense", "runs/grouped").out
    assert "head.name" in out
    assert "optim.lr" not in out
    assert "x 0.600" in out  # memory
    assert "+0.1000" in out  # loss
    assert "Machines differ (cpu one to two): speed and memory do not compare." in out
    assert "Versions differ: commit aaaaaaaaaaaa to bbbbbbbbbbbb." in out
    assert "No test of the losses: gvc eval runs/dense runs/grouped measures both on one text." in out
    found = json.loads(gvc("diff", "runs/dense", "runs/grouped", "--json").out)
    assert found["config"]["head.name"] == ["dense", "grouped"]
    assert found["figures"]["memory/peak_tensor_gib"] == [0.5, 0.3]
    same = gvc("diff", "runs/dense", "runs/dense").out
    assert "The configs are equal." in same
    assert "Machine, commit and libraries are the same." in same


def test_case_24_diff_says_that_a_text_was_rewritten(gvc, pair):
    for number, (path, sha256) in enumerate(zip(pair, ("1f" * 32, "2e" * 32), strict=True)):
        (path / "config.json").write_text((pair[0] / "config.json").read_text())
        files = [{"path": "/data/v.txt", "bytes": 12 + 2 * number, "sha256": sha256}]
        write_json(path / "inputs.json", {"data.valid": {"source": "text", "files": files, "text_field": None}})
    said = " ".join(gvc("diff", *map(str, pair)).out.split())
    assert "The configs are equal." in said
    assert "Inputs differ: data.valid /data/v.txt (12 -> 14 bytes, sha256 1f1f1f1f -> 2e2e2e2e)." in said
    assert "Texts or tokenizers differ: losses per token do not compare" in said
    found = json.loads(gvc("diff", *map(str, pair), "--json").out)
    assert (found["same_text"], "data.valid" in found["inputs"]) == (False, True)
    (pair[1] / "inputs.json").write_text((pair[0] / "inputs.json").read_text())
    assert "differ: data" not in gvc("diff", *map(str, pair)).out


def stories(nll, tokens) -> dict:
    """What `gvc eval` keeps of a run of 100 steps."""
    return {"nll": nll.tolist(), "tokens": tokens.tolist(), "sha256": "text", "trainer/step": 100}


def test_case_24_diff_tests_the_losses_that_eval_kept(gvc, pair):
    tokens, generator = np.full(40, 10), np.random.default_rng(0)
    first = generator.normal(50, 1, 40)
    second = first + generator.normal(1, 0.1, 40)
    for path, nll in zip(pair, (first, second), strict=True):
        write_json(path / "stories-eval.json", stories(nll, tokens))
    (tested,) = json.loads(gvc("diff", *map(str, pair), "--json").out)["checkpoints"]
    expected = compare_checkpoints(first, second, tokens)
    assert (tested["difference"], tested["p_value"]) == (expected.difference, expected.p_value)
    assert "These checkpoints, story by story" in gvc("diff", *map(str, pair)).out
    for other in ({"sha256": "other"}, {"trainer/step": 50}):  # another text; a checkpoint before the last one
        write_json(pair[0] / "stories-eval.json", stories(first, tokens) | other)
        assert json.loads(gvc("diff", *map(str, pair), "--json").out)["checkpoints"] == []
    for path in pair:
        write_json(path / "stories-eval.json", stories(first[:1], tokens[:1]))
    assert "one story" in gvc("diff", *map(str, pair)).out


def test_case_24_diff_of_no_run_is_one_line(gvc, pair):
    outcome = gvc("diff", "runs/dense", "nowhere")
    assert outcome.code == 3
    assert outcome.err.startswith("gvc: error: nowhere is not a run folder")
