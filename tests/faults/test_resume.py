"""Stopped and gone on equals never stopped: losses, learning rates, weights, moments, random state, samples."""

import contextlib
import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
from fault_tools import assert_same, final_state, fork_train, nothing_measured, train_to_end, wait

from grouped_lm.config import TokenizerConfig
from grouped_lm.errors import CheckpointError, DriftError, SchemaError
from grouped_lm.generate import generate_texts
from grouped_lm.grouping import parse_grouping
from grouped_lm.runs.checkpoint import SCHEMA_VERSION, list_checkpoints, load_latest, write_checkpoint
from grouped_lm.train import session
from grouped_lm.train.loop import train

HEADS = ("dense", "grouped")
CUTS = {
    "step 1": ([1], None),
    "inside an epoch": ([4], None),
    "at the edge of an epoch": (["edge"], None),
    "after an evaluation": ([5], None),
    "inside an accumulation": ([3], 1),
    "twice in one epoch": ([2, 4], None),
}


@contextlib.contextmanager
def die_in_step(step: int, micro_step: int | None):
    """Save after every step, and die as `step` is done, or in the middle of the one after it."""
    import os

    from grouped_lm.data.loader import TrainBatches
    from grouped_lm.train import checkpoints as module

    original_save, original_batch = module.write_checkpoint, TrainBatches.batch

    def save(parent, at, files, keep):
        original_save(parent, at, files, keep)
        if at == step and micro_step is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def batch(self, index):
        if micro_step is not None and index == 2 * step + micro_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original_batch(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_checkpoint", save)
        patch.setattr(TrainBatches, "batch", batch)
        yield


def resume_cell(config, head: str, cut: str, dropout: float, tmp_path: Path) -> None:
    made = config(head, dropout=dropout, checkpoint_every_steps=1, max_steps=8)
    steps, micro_step = CUTS[cut]
    train_to_end(made, tmp_path / "whole")
    for step in steps:
        at = windows_per_epoch(made) // 4 if step == "edge" else step
        code = wait(fork_train(made, tmp_path / "cut", lambda at=at: die_in_step(at, micro_step)))
        assert code == -9, (tmp_path / "cut.log").read_text()[-2000:]
        assert load_latest(tmp_path / "cut" / "checkpoints", quarantine=False)[0] == at
    train_to_end(made, tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole", f"resume {head}, {cut}, dropout {dropout}", 0)
    stories = [list(generate_texts(tmp_path / run, made, seed=1, max_new_tokens=40)) for run in ("cut", "whole")]
    assert stories[0] == stories[1]


def windows_per_epoch(config) -> int:
    """Small text: an epoch of a few steps, so that a run crosses its edge."""
    from grouped_lm.data import prepare_data
    from grouped_lm.data.loader import TrainBatches

    tokens = prepare_data(config.data, config.tokenizer).train.tokens()
    return TrainBatches(tokens, config.model.block_size, 2, 0).windows_per_epoch


@pytest.fixture
def split_texts(tmp_path) -> dict[str, str]:
    """Five steps of training text of two micro-batches of two windows of 32 each."""
    (tmp_path / "train.txt").write_text("The cat saw a hen. " * 34 + "x")
    (tmp_path / "valid.txt").write_text("The hen saw a cat. " * 20)
    return {"train": str(tmp_path / "train.txt"), "valid": str(tmp_path / "valid.txt")}


def test_resume_in_two_cells(config, tmp_path):
    assert 4 <= windows_per_epoch(config()) // 4 < 7
    resume_cell(config, "grouped", "at the edge of an epoch", 0.1, tmp_path / "a")
    resume_cell(config, "dense", "inside an accumulation", 0.1, tmp_path / "b")


def test_rows_that_are_left_out_change_no_bit_of_a_run_and_none_of_its_resume(config, tmp_path, monkeypatch):
    """GPT-2's vocabulary, of which this text has some thirty tokens."""
    made = config("shortlist", dropout=0.1, checkpoint_every_steps=2, max_steps=6, eval_every_steps=3)
    made = dataclasses.replace(made, tokenizer=TokenizerConfig(name="gpt2"), grouping=parse_grouping("frequency"))
    train_to_end(made, tmp_path / "rows")
    code = wait(fork_train(made, tmp_path / "cut", lambda: die_in_step(4, 1)))
    assert code == -9, (tmp_path / "cut.log").read_text()[-2000:]
    train_to_end(made, tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "rows", "rows", 0)
    left_out = []
    monkeypatch.setattr(session, "leave_out_unused_rows", lambda *_: left_out.append(0))
    with nothing_measured():
        train(made, tmp_path / "whole")
    assert left_out
    assert_same(tmp_path / "rows", tmp_path / "whole", "rows", 0)


@pytest.mark.faults
def test_resume_matrix(config, tmp_path, figure):
    cells = [(head, cut, dropout) for head in HEADS for cut in CUTS for dropout in (0.0, 0.1)]
    for number, cell in enumerate(cells):
        resume_cell(config, *cell, tmp_path / str(number))
    figure("resume: 2 heads x 6 places x dropout on, off", f"{len(cells)} of {len(cells)} cells byte-equal")


@pytest.mark.parametrize(
    ("version", "advice"),
    [(SCHEMA_VERSION - 1, "train again, or read it with gvc 0.1"), (SCHEMA_VERSION + 1, "use the gvc that wrote it")],
)
def test_a_checkpoint_of_another_schema_version_is_refused_and_left_alone(tmp_path, monkeypatch, version, advice):
    from grouped_lm.runs import checkpoint

    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", version)
    monkeypatch.setattr(checkpoint, "verify", lambda folder: None)
    folder = write_checkpoint(tmp_path, 1, {"state.json": b"{}"}, keep=2)
    with pytest.raises(SchemaError, match=rf"has schema version {version}, this gvc reads 2: {advice}"):
        load_latest(tmp_path)
    assert list_checkpoints(tmp_path) == [folder]


@pytest.mark.parametrize("command", ["eval", "sample", "export", "train"])
def test_a_run_folder_of_schema_1_is_refused_in_one_line(gvc, config, texts, tmp_path, workdir, command):
    train_to_end(config(), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("schema_version") == SCHEMA_VERSION == 2
    path.write_text(json.dumps(values))
    before = sorted(tmp_path.rglob("*"))
    same = ["model=debug", "head=grouped", f"hydra.run.dir={tmp_path}/run", "data=text"]
    words = [*same, *(f"data.{k}={v}" for k, v in texts.items())] if command == "train" else [str(tmp_path / "run")]
    outcome = gvc(command, *words)
    message = f"gvc: error: {tmp_path}/run has schema version 1, this gvc reads 2: train again, or read it with gvc 0.1"
    assert (outcome.code, outcome.err.strip()) == (6, message)
    assert sorted(tmp_path.rglob("*")) == before
    listed = json.loads(gvc("ls", str(tmp_path / "run"), "--json").out)
    assert [row["state"] for row in listed] == ["other version"]


def test_a_checkpoint_of_another_config_is_refused_field_by_field(config, tmp_path):
    train_to_end(config(), tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()  # the checkpoint alone knows what it was made with
    (tmp_path / "run" / "result.json").unlink()
    other = config(max_steps=13)
    other.optim.lr = 0.5
    with pytest.raises(DriftError, match=r"optim.lr: 0.001 -> 0.5, train.max_steps: 12 -> 13"):
        train(other, tmp_path / "run")


def test_another_machine_is_said(config, tmp_path, monkeypatch, capfd):
    made = config()
    assert wait(fork_train(made, tmp_path / "run", lambda: die_in_step(4, None))) == -9
    from grouped_lm.train import session as module

    described = module.describe_environment
    monkeypatch.setattr(module, "describe_environment", lambda device: described(device) | {"threads": 64})
    with nothing_measured():
        train(made, tmp_path / "run")
    assert "the bits may differ (threads: 1 -> 64)" in capfd.readouterr().err


SPEEDS = ("throughput/tokens_per_sec", "throughput/mfu", "time/step_ms")


@pytest.mark.parametrize("steps_left", [0, 2])
def test_a_run_that_goes_on_for_a_few_steps_keeps_its_speed(config, tmp_path, steps_left):
    with nothing_measured():
        before = train(config(), tmp_path / "run")
        (tmp_path / "run" / "result.json").unlink()  # as if stopped in its final evaluation, or shortly before
        if steps_left:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000012")
        after = train(config(), tmp_path / "run")
    assert all(after[key] for key in SPEEDS)
    if not steps_left:
        assert [after[key] for key in SPEEDS] == [before[key] for key in SPEEDS]
    last = [row for row in read_rows(tmp_path / "run") if "train/loss" in row][-1]
    assert (last["throughput/tokens_per_sec"] is None) == bool(steps_left)  # a row has what was measured for it


def read_rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_other_code_is_said_and_every_commit_is_kept(config, tmp_path, monkeypatch, capfd):
    from grouped_lm.train import session as module

    made, run, described = config(), tmp_path / "run", module.describe_environment
    for commit, cut in (("one", 4), ("two", 8), ("two", 10), ("three", None)):
        monkeypatch.setattr(module, "describe_environment", lambda device, c=commit: described(device) | {"commit": c})
        if cut is not None:
            assert wait(fork_train(made, run, lambda cut=cut: die_in_step(cut, None))) == -9
    capfd.readouterr()
    with nothing_measured():
        result = train(made, run)
    assert "the bits may differ (commit: two -> three)" in capfd.readouterr().err
    assert result["commit"] == "three"
    assert json.loads((run / "environment.json").read_text())["commits"] == ["one", "two", "three"]
    said = (tmp_path / "run.log").read_text()
    assert said.count("the bits may differ") == said.count("(commit: one -> two)") == 1


def test_runs_whose_folders_have_one_name_have_mirrors_of_their_own(config, tmp_path, capfd):
    copies = tmp_path / "copies"
    first, other = (config(mirror=str(copies), max_steps=steps) for steps in (12, 13))
    with nothing_measured():
        for name, made in (("a", first), ("b", other)):
            result = train(made, tmp_path / name / "seed=0")
            assert result["trainer/step"] == made.train.max_steps
            assert "continuing from" not in capfd.readouterr().err
    assert sorted(len(list_checkpoints(path)) for path in copies.iterdir()) == [2, 2]
    assert all(path.name.startswith("seed=0-") for path in copies.iterdir())


def test_damaged_checkpoints_are_not_forgotten_for_an_empty_mirror(config, tmp_path):
    made = config(mirror=str(tmp_path / "copies"))
    train_to_end(made, tmp_path / "run")
    shutil.rmtree(tmp_path / "copies")
    (tmp_path / "run" / "result.json").unlink()
    for folder in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (folder / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="all are damaged"), nothing_measured():
        train(made, tmp_path / "run")


def test_a_lost_run_folder_goes_on_from_its_mirror(config, tmp_path):
    train_to_end(config(), tmp_path / "whole")
    made = config(mirror=str(tmp_path / "copies"))
    assert wait(fork_train(made, tmp_path / "run", lambda: die_in_step(6, None))) == -9
    shutil.rmtree(tmp_path / "run")
    train_to_end(made, tmp_path / "run")
    assert "continuing from" in (tmp_path / "run.log").read_text()
    assert_same(tmp_path / "run", tmp_path / "whole", "mirror", 0)
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_resume_never_begins_anew_beside_a_mirror(config, tmp_path):
    copies = str(tmp_path / "copies")
    assert wait(fork_train(config(mirror=copies), tmp_path / "run", lambda: die_in_step(6, None))) == -9
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run.log").unlink()
    train_to_end(config(mirror=copies, resume="never"), tmp_path / "run")
    assert "continuing from" not in (tmp_path / "run.log").read_text()


def test_a_mirror_that_cannot_be_written_is_said_and_ends_nothing(config, tmp_path):
    (tmp_path / "copies").write_text("a file where a folder should be")
    train_to_end(config(mirror=str(tmp_path / "copies")), tmp_path / "run")
    assert (tmp_path / "run.log").read_text().count("gvc: warning: no copy:") == 6
