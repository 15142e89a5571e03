"""The driver of a reproduction: steps that run again, and folders whose paths have an equals sign."""

import json
from pathlib import Path

import pytest

from grouped_lm.errors import ConfigError
from grouped_lm.reproduction.evidence import read_curve
from grouped_lm.reproduction.run import Reproduction
from grouped_lm.reproduction.steps import Scale, Step, find_text


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def text_folder(path: str) -> Path:
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid"):
        (folder / f"{split}.txt").write_text("Once upon a time.")
    return folder


def driver(command: str, monkeypatch, fails: tuple[str, ...] = ()) -> tuple[Reproduction, Step, list[str]]:
    """A reproduction with one step for each of two runs, and the names of the runs that it was run for."""
    step = Step(name="evaluate", about="all", minutes=1, command=command, each="main/*", makes="eval.json")
    scale = Scale(name="tiny", about="", machine="", minutes=1, texts={}, steps=[step])
    work, ran = Reproduction(scale, Path("r"), []), []

    def run_command(words, log, say, kept=None):
        run = Path(words[2])
        ran.append(run.name)
        if run.name in fails:
            raise KeyboardInterrupt
        (run / "eval.json").write_text(json.dumps(words))

    monkeypatch.setattr(work, "_run_command", run_command)
    return work, step, ran


def test_a_changed_command_runs_again_for_every_run_and_continues_after_a_stop(monkeypatch):
    for name in ("a", "b"):
        Path(f"r/main/{name}").mkdir(parents=True)
        Path(f"r/main/{name}/result.json").write_text('{"state": "complete"}')
    Path("r/main/a/eval.json").write_text("by hand")
    work, step, ran = driver("gvc eval {run} --samples 8", monkeypatch)
    assert (work.run([step], print), ran) == ([], ["b"])  # no command is recorded: what is there stays
    work, step, ran = driver("gvc eval {run} --samples 8", monkeypatch)
    assert (work.run([step], print), ran) == ([], [])
    work, step, ran = driver("gvc eval {run} --samples 9", monkeypatch, fails=("b",))
    with pytest.raises(KeyboardInterrupt):
        work.run([step], print)
    assert ran == ["a", "b"]
    work, step, ran = driver("gvc eval {run} --samples 9", monkeypatch)
    assert (work.run([step], print), ran) == ([], ["b"])
    assert all("9" in json.loads(Path(f"r/main/{name}/eval.json").read_text()) for name in ("a", "b"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("x/a=b/tinystories", "tinystories"),
        ("tinystories=x/a=b/tinystories", "tinystories"),
        ("mine=x/a=b/tinystories", "mine"),
        ("./x/a=b", "a=b"),
    ],
)
def test_the_path_of_a_text_may_have_an_equals_sign(given, name):
    text_folder("x/a=b")
    text_folder("x/a=b/tinystories")
    assert find_text(given).name == name


@pytest.mark.parametrize("name", ["try(1)", "a,b", "[x]", "it's"])
def test_a_folder_that_no_override_can_name_is_refused(name):
    scale = Scale(name="tiny", about="", machine="", minutes=1, texts={}, steps=[])
    with pytest.raises(ConfigError, match="which no override can hold"), Reproduction(scale, Path(name), []).lock():
        pass
    assert not Path(name).exists()


def test_the_seconds_of_a_curve_do_not_depend_on_when_it_is_validated(tmp_path):
    rows = [{"trainer/step": step, "time/step_ms": 1000.0, "train/loss": 1.0} for step in range(10, 101, 10)]
    rows += [{"trainer/step": step, "val/loss": 1.0} for step in (25, 50, 75, 100)]
    lines = [json.dumps(row) for row in sorted(rows, key=lambda row: row["trainer/step"])]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert read_curve(tmp_path, "run")[-1]["seconds"] == pytest.approx(100)


def test_a_folder_with_an_equals_sign_is_continued():
    scale = Scale(name="tiny", about="", machine="", minutes=1, texts={}, steps=[])
    text_folder("tinystories")
    first = Reproduction(scale, Path("runs/seed=0/r"), [find_text("tinystories")])
    with first.lock():
        first.prepare()
    again = Reproduction(scale, Path("runs/seed=0/r"), [])
    assert again.texts == first.texts
    assert "runs/seed=0/r/texts/tinystories/train.txt" in str(again.texts["stories"])
