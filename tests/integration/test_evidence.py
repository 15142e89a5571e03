"""Files among the runs that are broken, or somebody else's: a line each, and the page of the rest."""

import json
from pathlib import Path

import pytest
from made_up import make_evidence

from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import collect_evidence, read_evidence, write_evidence
from grouped_lm.reproduction.rules import answer_claims
from grouped_lm.system.tables import csv_text

CONFIG = {
    "schema_version": 2,
    "model": {"name": "m"},
    "head": {"name": "dense"},
    "train": {},
    "data": {"name": "2024"},
    "seed": 0,
}


def make_folder(path: Path, **files: str) -> Path:
    """A run folder with more files in it."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "result.json").write_text(json.dumps({"state": "complete", "val/loss": 4.0}))
    (path / "metrics.jsonl").write_text('{"trainer/step": 1, "train/loss": 5.0}\n')
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


BROKEN = {
    "eval__json": ["[1]", '{"by_frequency": [1]}', '{"by_frequency": [{"name": "decile 1"}]}', "{"],
    "metrics__jsonl": ["3\n[1]\nnull\n", '{"trainer/step": "x", "time/step_ms": 1}\n'],
    "stories__jsonl": ["1\n", '{"index": 0}\n'],
    "environment__json": ["[]", '{"libraries": 3}'],
    "bench__csv": [
        "suite,ms\nmine,3\n",
        "a,b\n1,2\n",
        "suite,part,model\nmemory,truth,m\n",
        "suite,head\nsteps,dense\n",
    ],
    "order__csv": ["data,rank_correlation,low\nx,0.5,0.4\n", "data\nx\n"],
    "orders__csv": ["what,is\nthis,1\n"],
    "steps__csv": ["step\n1\n"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_one_broken_file_among_the_runs_takes_nothing_else_with_it(workdir, name, text):
    make_folder(Path("runs/good"))
    make_folder(Path("runs/broken"), **{name: text})
    said: list[str] = []
    found = collect_evidence([Path("runs")], said.append)
    assert [row["run"] for row in found["runs"]] == ["broken", "good"]
    assert [row["run"] for row in found["curves"]][-1] == "good"
    assert len(said) <= 1
    answer_claims(load_claims(), found)
    if name in ("bench__csv", "order__csv", "steps__csv"):
        assert "is left out" in said[0]


def test_bytes_that_are_no_text_are_left_out(workdir):
    make_folder(Path("runs/good"))
    Path("runs/order.csv").write_bytes(b"\xff\xfe\x00data")
    said: list[str] = []
    assert len(collect_evidence([Path("runs")], said.append)["runs"]) == 1
    assert "no CSV" in said[0]


def test_the_page_of_the_rest_is_written(workdir, gvc):
    write_evidence(make_evidence(), Path("made/data"))
    Path("made/data/order.csv").write_text("data\nx\n")
    outcome = gvc("report", "made")
    assert outcome.code == 0, outcome.err
    assert "order.csv is left out: a row lacks rank_correlation" in outcome.err
    assert "does not hold" in Path("made/report/report.md").read_text()  # beside the table, which may be somebody's own


def test_names_that_look_like_numbers_stay_names(tmp_path):
    evidence = make_evidence()
    for row in [*evidence["runs"], *evidence["order"]]:
        row["data"] = {"tinystories": "2024", "prose": "1e3"}[row["data"]]
    evidence["runs"][0]["run"] = "0"
    write_evidence(evidence, tmp_path / "data")
    back = read_evidence(tmp_path)
    assert {row["data"] for row in back["runs"]} == {"2024", "1e3"}
    assert back["runs"][0]["run"] == "0"
    assert [a.verdict for a in answer_claims(load_claims(), back)] == [
        a.verdict for a in answer_claims(load_claims(), evidence)
    ]


def test_runs_without_a_vocabulary_are_left_out_of_group_sizes():
    evidence = make_evidence()
    for row in evidence["runs"]:
        del row["vocab_size"]
    assert answer_claims(load_claims(), evidence)


def test_runs_of_two_folders_keep_apart_and_name_no_place_of_the_machine(workdir):
    for folder in ("a/same", "b/same", "c"):
        make_folder(Path(folder) / "0")
    folders = [Path(name).absolute() for name in ("a/same", "b/same", "c", "c/../c")]
    found = collect_evidence(folders)
    assert [row["run"] for row in found["runs"]] == ["same/0", "same-2/0", "c/0"]
    assert [row["run"] for row in found["curves"]] == ["same/0", "same-2/0", "c/0"]
    assert str(workdir) not in csv_text(found["runs"])
    assert [row["run"] for row in collect_evidence([Path("c/0").absolute()])["runs"]] == ["0"]


def test_a_page_among_its_runs_is_made_of_the_runs_each_time(workdir, gvc):
    make_folder(Path("st/one"))
    write_evidence({"order": make_evidence()["order"]}, Path("st"))
    assert gvc("report", "st", "--out", "st").code == 0
    make_folder(Path("st/two"))
    assert gvc("report", "st", "--out", "st").code == 0
    found = read_evidence(Path("st"))
    assert [row["run"] for row in found["runs"]] == ["one", "two"]
    assert len(found["order"]) == 2  # the report's own tables are no evidence


def test_a_dashboard_below_a_file_is_one_line(gvc, workdir):
    Path("file").write_text("mine")
    outcome = gvc("dashboard", "--offline", "--out", "file/x.json")
    assert (outcome.code, len(outcome.err.splitlines())) == (4, 1)
    assert "--out file/x.json cannot be written" in outcome.err
