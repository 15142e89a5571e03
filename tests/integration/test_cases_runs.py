"""Cases of runs: a text that changed, stop and resume, another run's weights, the largest batch, short validations."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def own_text(texts, workdir):
    """Overrides for copies of the text that a test may change."""
    for split in ("train", "valid"):
        shutil.copy(texts[split], f"{split}.txt")
    return ["data.train=train.txt", "data.valid=valid.txt"]


def fails_in_one_line(outcome, code, *parts):
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("gvc: error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


def test_case_C5_a_finished_run_whose_text_changed_is_refused(gvc, tiny, own_text):
    words = ["train", *tiny, *own_text, "head=dense", "train.max_steps=1", "hydra.run.dir=run"]
    assert gvc(*words).code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*.json")}
    for split in ("train", "valid"):
        text = Path(f"{split}.txt")
        original, size = text.read_text(), text.stat().st_size
        text.write_text(original.replace("Once", "Never"))
        changed = f"data.{split} {text.absolute()} ({size:,} -> {text.stat().st_size:,} bytes, sha256 "
        fails_in_one_line(gvc(*words), 6, "run was trained with other files", changed, "give another hydra.run.dir")
        fails_in_one_line(gvc(*words, "train.max_steps=2"), 6, "train.max_steps: 1 -> 2")
        text.write_text(original)
    assert {path: path.read_bytes() for path in Path("run").rglob("*.json")} == before
    assert gvc(*words).code == 0


def test_case_C5_files_of_a_folder_and_the_tokenizer_file(gvc, tiny, own_text):
    Path("more").mkdir()
    shutil.move("train.txt", "more/a.txt")
    assert gvc("train", *tiny, *own_text, "data.train=more", "tokenizer=bpe", "tokenizer.vocab_size=300",
               "train.max_steps=1", "hydra.run.dir=first").code == 0  # fmt: skip
    shutil.copy("first/tokenizer.json", "own.json")
    words = ["train", *tiny, *own_text, "data.train=more", "tokenizer=bpe", "tokenizer.vocab_size=300"]
    words += ["tokenizer.file=own.json", "train.max_steps=1", "hydra.run.dir=run"]
    assert gvc(*words).code == 0
    shutil.copy("valid.txt", "more/b.txt")
    fails_in_one_line(gvc(*words), 6, f"data.train {Path('more/b.txt').absolute()} (is new)")
    shutil.move("more/b.txt", "more/0.txt")
    shutil.move("more/a.txt", "b.txt")
    fails_in_one_line(gvc(*words), 6, f"data.train {Path('more/0.txt').absolute()} (")
    Path("more/0.txt").unlink()
    shutil.move("b.txt", "more/renamed.txt")
    assert gvc(*words).code == 0  # the same text under another name
    Path("own.json").write_text(Path("own.json").read_text() + "\n")
    fails_in_one_line(gvc(*words), 6, f"tokenizer.file {Path('own.json').absolute()} (")


def test_case_C5_an_unfinished_run_and_a_sweep(gvc, tiny, own_text):
    Path("own/sweep").mkdir(parents=True)
    Path("own/sweep/one.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0\n"
    )
    words = ["sweep", "one", "--config-dir", "own", *tiny, *own_text, "head=dense", "train.max_steps=1"]
    assert gvc(*words).code == 0
    results = {path: path.read_bytes() for path in Path("runs/one").glob("*/result.json")}
    assert len(results) == 1
    Path("valid.txt").write_text(Path("train.txt").read_text())
    for more in ([], ["--dry-run"]):
        fails_in_one_line(gvc(*words, *more), 6, "runs/one/seed=0 was trained with", "data.valid")
    assert all(path.read_bytes() == content for path, content in results.items())
    job = json.loads(Path("runs/one/seed=0/result.json").read_text())
    Path("runs/one/seed=0/result.json").write_text(json.dumps(job | {"state": "interrupted"}))
    run = ["train", *tiny, *own_text, "head=dense", "train.max_steps=1", "seed=0", "hydra.run.dir='runs/one/seed=0'"]
    fails_in_one_line(gvc(*run), 6, "runs/one/seed=0 was trained with", "data.valid")
