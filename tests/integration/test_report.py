"""Runs side by side: rows from folders, conditions, order, the front, the files of a sweep."""

import csv
import fcntl
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from grouped_lm.config import Config, config_to_dict
from grouped_lm.errors import ConfigError, RunFolderError
from grouped_lm.heads import DenseConfig, GroupedConfig
from grouped_lm.report import tables as report
from grouped_lm.report.style import PlotLibraryError
from grouped_lm.report.tables import comparison_table, runs_csv, write_results, write_tables
from grouped_lm.runs.query import PARETO_KEYS, mark_front, pareto_rows, select_rows, sort_rows
from grouped_lm.runs.table import add_ratios, collect_runs, is_held

ROWS = [
    {"run": "runs/a", "head": "dense", "seed": 0, "val/perplexity": 64.0, "throughput/tokens_per_sec": 1000.0},
    {"run": "runs/b", "head": "grouped", "seed": 0, "val/perplexity": 158.0, "throughput/tokens_per_sec": 12000.0},
    {"run": "runs/c", "head": "grouped", "seed": 10, "val/perplexity": None, "throughput/tokens_per_sec": 11000.0},
]
TRAIN = {"trainer/step": 4, "train/perplexity": 90.5, "throughput/tokens_per_sec": 800.0, "memory/peak_tensor_gib": 0.5}


def names(rows):
    return "".join(row["run"][-1] for row in rows)


def make_run(path: Path, head=None, metrics=(TRAIN,), settings=None, **result) -> Path:
    """Write a run folder as training leaves it; without `result` one that was broken off."""
    path.mkdir(parents=True)
    config = config_to_dict(Config(head=head or GroupedConfig(group_size=64)))
    for key, value in (settings or {}).items():
        part, name = key.split(".")
        config[part][name] = value
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if result:
        (path / "result.json").write_text(json.dumps(result))
    return path


def complete(loss: float, rate: float, memory: float) -> dict:
    figures = {"val/loss": loss, "val/perplexity": 2.0**loss, "throughput/tokens_per_sec": rate}
    return {"state": "complete", "trainer/step": 8, "memory/peak_tensor_gib": memory} | figures


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A sweep with every way to end."""
    folder = tmp_path / "sizes"
    make_run(folder / "size=128", GroupedConfig(group_size=128), **complete(4.1234567890123, 900.0, 0.25))
    make_run(folder / "size=64", **complete(4.5, 800.0, 0.5))
    make_run(folder / "dense", DenseConfig(), **complete(4.0, 100.0, 2.0))
    make_run(folder / "hot", state="failed", reason="diverged at step 5: loss nan | lower optim.lr")
    make_run(folder / "left")
    make_run(folder / ".replaced/size=64-1", **complete(1.0, 9e9, 0.1))
    (folder / "multirun.yaml").touch()
    (folder / "early").mkdir()  # failed before the run wrote its own config
    (folder / "early/job.json").write_text(json.dumps(config_to_dict(Config(head=GroupedConfig()))))
    (folder / "early/result.json").write_text(json.dumps({"state": "failed", "reason": "no such file"}))
    return folder


def test_rows_say_what_the_folders_say(sweep):
    rows = {Path(row["run"]).name: row for row in collect_runs([sweep])}
    assert list(rows) == ["dense", "early", "hot", "left", "size=64", "size=128"]
    assert {row["sweep"] for row in rows.values()} == {"sizes"}
    assert {name: row["state"] for name, row in rows.items() if row["state"] != "complete"} == {
        "early": "failed",
        "hot": "failed",
        "left": "unfinished",
    }
    assert (rows["left"]["trainer/step"], rows["left"]["train/perplexity"]) == (4, 90.5)
    assert rows["left"]["memory/peak"] == 0.5
    assert rows["early"]["reason"] == "no such file"
    assert rows["early"]["group_size"] == 224
    assert rows["dense"]["group_size"] is None
    assert rows["dense"]["vocab_size"] == 50257


def test_a_half_written_line_and_old_or_foreign_configs_stop_nothing(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"trainer/step": 5, "train/per')
    older = make_run(tmp_path / "schema-1")
    config = json.loads((older / "config.json").read_text())
    del config["schema_version"]
    (older / "config.json").write_text(json.dumps(config))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text("[1]")
    row, other = collect_runs([tmp_path])
    assert row["trainer/step"] == 4
    assert (other["state"], other["head"]) == ("other version", None)
    assert "this gvc reads 2: train again, or read it with gvc 0.1" in other["reason"]
    with pytest.raises(RunFolderError):
        collect_runs([tmp_path / "foreign"])


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("result.json", "val/perplexity", "low"),
        ("result.json", "seed", [1]),
        ("config.json", "tokenizer", []),
        ("config.json", "optim", 3),
        ("config.json", "tokenizer", None),
        ("config.json", "field_of_another_version", 1),
    ],
)
def test_a_damaged_run_hides_no_other(gvc, tmp_path, file, key, value):
    for name in ("a", "b"):
        make_run(tmp_path / name, **complete(5.0, 10.0, 1.0))
    path = tmp_path / "a" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    rows = {Path(row["run"]).name: row for row in collect_runs([tmp_path])}
    assert [rows[name]["state"] for name in ("a", "b")] == ["damaged", "complete"]
    reason = "another kind than gvc writes" if file == "result.json" else "config.json is damaged: "
    assert reason in rows["a"]["reason"]
    for words in ([], ["--csv"], ["--json"], ["--sort", "perplexity"]):
        assert gvc("ls", str(tmp_path), *words).code == 0
    assert len(write_results(tmp_path)) == 2


HOLD = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]): print(flush=True); sys.stdin.read()"


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel lists no locks here")
def test_a_run_in_training_is_seen_without_touching_its_lock(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", state="interrupted", **{"trainer/step": 2})
    lock = run / ".lock"
    assert not is_held(lock)
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("the lock was taken"))
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        (row,) = collect_runs([run])
        assert (row["state"], row["trainer/step"]) == ("running", 4)  # further than the earlier attempt's result
        holder.communicate()
    assert not is_held(lock)
    assert collect_runs([run])[0]["state"] == "interrupted"


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
        (["seed>=10"], "c"),
        (["perplexity<=64"], "a"),
        (["perplexity=none"], "c"),
        (["head=nothing"], ""),
        (["seed=0,10"], "abc"),
        (["seed=0,1"], "ab"),
        (["seed!=0,1"], "c"),
        (["head=dense, film"], "a"),
        (["tokens/s=1,000"], "a"),
        (["tokens/s=1_000,11000"], "ac"),
    ],
)
def test_conditions(conditions, left):
    assert names(select_rows(ROWS, conditions)) == left


@pytest.mark.parametrize("condition", ["head", "hed=dense", "perplexity<low", "seed<0,1", "seed<1,00"])
def test_conditions_that_cannot_be_met_or_read(condition):
    with pytest.raises(ConfigError):
        select_rows(ROWS, [condition])


def test_order_with_missing_figures_last():
    assert names(sort_rows(ROWS, "perplexity")) == "abc"
    assert names(sort_rows(ROWS, "perplexity", reverse=True)) == "bac"
    assert names(sort_rows(ROWS, "tokens/s", reverse=True)) == "bca"
    with pytest.raises(ConfigError, match="did you mean perplexity"):
        sort_rows(ROWS, "perplexty")


def judged(*values) -> dict:
    return {"state": "complete"} | {key: value for (key, _), value in zip(PARETO_KEYS, values, strict=True)}


def test_front_is_what_none_beats():
    rows = [judged(*values) for values in itertools.product((1.0, 2.0, 3.0), repeat=3)][::2]

    def beats(a, b):
        better = [sign * (a[key] - b[key]) for key, sign in PARETO_KEYS]
        return min(better) >= 0 and max(better) > 0

    assert pareto_rows(rows) == [row for row in rows if not any(beats(other, row) for other in rows)]


def test_front_keeps_ties_and_leaves_out_what_cannot_be_judged():
    best, twin, worse = judged(1.0, 5.0, 1.0), judged(1.0, 5.0, 1.0), judged(1.0, 4.0, 1.0)
    broken = judged(0.5, 9.0, 0.5) | {"state": "failed"}
    partial = judged(0.5, 9.0, None)
    endless = judged(float("nan"), 9.0, 0.5)
    assert pareto_rows([worse, best, broken, twin, partial, endless]) == [best, twin]
    elsewhere = judged(9.0, 1.0, 9.0) | {"data": "other"}  # a text of its own is not beaten from outside
    rows = [best, worse, broken, elsewhere]
    mark_front(rows)
    assert [row["front"] for row in rows] == ["yes", "no", None, "yes"]


def test_results_files(sweep):
    rows = write_results(sweep)
    table = list(csv.DictReader((sweep / "results.csv").open()))
    assert [row["run"] for row in table] == ["dense", "early", "hot", "left", "size=64", "size=128"]
    assert float(table[5]["val/loss"]) == 4.1234567890123
    assert [row["front"] for row in table] == ["yes", "", "", "", "no", "yes"]
    assert table[2]["reason"].startswith("diverged")
    text = (sweep / "results.md").read_text()
    assert "3 of 6 runs complete" in text
    assert "- hot: failed at step 4: diverged at step 5: loss nan \\| lower optim.lr" in text
    assert "- early: failed before its first figures: no such file" in text
    assert "- left: unfinished at step 4" in text
    for picture in (line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")):
        assert (sweep / picture).stat().st_size > 1000
    assert text.count("![") == 4  # no head memory was measured
    before = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    assert write_results(sweep) == rows
    assert {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()} == before


def test_results_without_matplotlib_and_without_runs(sweep, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PlotLibraryError("no plots: pip install 'grouped-lm[report]'")

    monkeypatch.setattr(report, "write_plots", refuse)
    assert len(write_results(sweep)) == 6
    assert "grouped-lm[report]" in capsys.readouterr().err
    assert "## Plots" not in (sweep / "results.md").read_text()
    (tmp_path / "empty").mkdir()
    assert write_results(tmp_path / "empty") == []
    assert not list((tmp_path / "empty").glob("[!.]*"))  # a lock is no result


def test_columns_stand_in_the_same_order_whatever_the_runs(tmp_path):
    write_tables([ROWS[0] | {"state": "complete"}], tmp_path)
    first = (tmp_path / "results.csv").read_text().splitlines()[0]
    assert (
        runs_csv([dict(reversed(ROWS[0].items())) | {"zeta": 1, "alpha": [1]}]).splitlines()[0] == first + ",alpha,zeta"
    )


def test_csv_comes_back():
    back = list(csv.DictReader(io.StringIO(runs_csv(ROWS))))
    assert [row["head"] for row in back] == ["dense", "grouped", "grouped"]
    assert float(back[1]["val/perplexity"]) == 158.0


def test_ratios_compare_like_with_like():
    rows = [row | {"model": "m", "data": "d", "tokenizer": "t", "trainer/tokens": 5} for row in ROWS]
    rows.append(rows[1] | {"model": "other"})
    add_ratios(rows)
    assert [row.get("throughput/vs_dense") for row in rows] == [1.0, 12.0, 11.0, None]


@pytest.mark.parametrize(
    "other",
    [
        {"model.block_size": 128},
        {"model.n_layer": 2},
        {"train.micro_batch_size": 4},
        {"train.dtype": "bfloat16"},
        {"train.compile": True},
        {"train.threads": 1},
        {"train.device": "cuda"},
        {"train.devices": 2},
        {"data.seed": 1},
        {"data.source": "text", "data.train": "a/x.txt", "data.valid": "b.txt"},
    ],
)
def test_ratios_only_to_a_dense_run_alike(tmp_path, other):
    judged = complete(4.0, 100.0, 2.0) | {"trainer/tokens": 10}
    make_run(tmp_path / "a", DenseConfig(), settings=other, **judged)
    make_run(tmp_path / "b", **judged | {"throughput/tokens_per_sec": 300.0})
    assert "throughput/vs_dense" not in collect_runs([tmp_path])[1]
    make_run(tmp_path / "c", DenseConfig(), settings={"optim.lr": 0.5, "model.name": "gpt2-1m"}, **judged)
    assert [row.get("throughput/vs_dense") for row in collect_runs([tmp_path])] == [1.0, 3.0, 1.0]


def test_ratios_where_the_machine_was_another(tmp_path):
    judged = complete(4.0, 100.0, 2.0) | {"trainer/tokens": 10}
    for name, head, environment in (
        ("a", DenseConfig(), {"device": "cuda", "gpu": "H100"}),
        ("b", None, {"device": "cpu", "gpu": None}),
        ("c", None, {"device": "cuda", "gpu": "H100"}),
    ):
        run = make_run(tmp_path / name, head, **judged)
        (run / "environment.json").write_text(json.dumps(environment))
    assert [row.get("memory/vs_dense") for row in collect_runs([tmp_path])] == [1.0, None, 1.0]


def test_texts_are_told_by_their_settings_not_by_their_name(tmp_path):
    for name, train, loss in (("a", "/x/one.txt", 4.0), ("b", "/x/one.txt", 5.0), ("c", "/y/one.txt", 6.0)):
        text = {"data.name": "text", "data.source": "text", "data.train": train, "data.valid": ["v.txt", "w.txt"]}
        make_run(tmp_path / name, settings=text, **complete(loss, 100.0, 2.0))
    rows = collect_runs([tmp_path])
    mark_front(rows)
    assert [row["front"] for row in rows] == ["yes", "no", "yes"]
    assert {(row["data.train"], row["data.valid"]) for row in rows} == {("one.txt", "v.txt w.txt")}
    assert "/x" not in runs_csv(rows)  # tables are shown to others


def test_what_is_the_same_in_all_runs_stands_in_the_title():
    table = comparison_table([row | {"model": "gpt2-1m"} for row in ROWS])
    assert "model gpt2-1m" in str(table.title)
    assert [column.header for column in table.columns] == ["", "a", "b", "c"]
    assert len(comparison_table([*ROWS, *ROWS]).rows) == 6


def test_relative_and_absolute_folders_together(gvc, tmp_path):
    make_run(tmp_path / "runs/a", **complete(4.0, 100.0, 2.0))
    make_run(tmp_path / "other/b", **complete(5.0, 100.0, 2.0))
    assert "runs/a" in gvc("ls", "runs", str(tmp_path / "other")).out
    assert str(comparison_table(collect_runs([Path("runs")])).title) == "runs"


def test_ls(gvc, sweep):
    assert [row["head"] for row in json.loads(gvc("ls", str(sweep), "--json", "--where", "head=dense").out)] == [
        "dense"
    ]
    words = ("ls", str(sweep), "--csv", "--sort", "perplexity", "--reverse", "--where", "state=complete")
    assert [row["group_size"] for row in csv.DictReader(io.StringIO(gvc(*words).out))] == ["64", "128", ""]
    shown = gvc("ls", str(sweep)).out
    assert "unfinished" in shown
    assert "hot: diverged" in shown
    nothing = gvc("ls", str(sweep), "--where", "seed=7")
    assert (nothing.code, nothing.out) == (0, "")
    wrong = gvc("ls", str(sweep), "--sort", "perplexty")
    assert (wrong.code, wrong.err) == (2, "gvc: error: no column perplexty: did you mean perplexity?\n")
    assert gvc("ls", str(sweep), "--where", "hed=x").code == 2


def test_results_count_the_jobs_of_the_command_and_name_the_others(sweep):
    write_results(sweep, 3, [sweep / "dense", sweep / "hot", sweep / "new"])
    text = (sweep / "results.md").read_text()
    assert text.startswith("# sizes\n\n1 of 3 runs complete.\n")
    assert "\nRuns of other commands in this folder: early, left, size=64, size=128.\n" in text
    write_results(sweep)
    assert (sweep / "results.md").read_text().startswith("# sizes\n\n3 of 6 runs complete.\n\n## Pareto front")


def test_brackets_in_the_names_of_runs_are_shown(tmp_path):
    for name in ("x[old]", "x[new]"):
        make_run(tmp_path / name, **complete(4.0, 1.0, 1.0))
    table = comparison_table(collect_runs([tmp_path]), False, 80)
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    assert all(name in console.file.getvalue() for name in ("x[old]", "x[new]"))
