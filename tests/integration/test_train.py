"""The loop: resumed equals uninterrupted to the bit, whatever stopped it; and what it refuses."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gate import Gate
from run_outputs import curve, saved_tensors
from safetensors.numpy import load_file

GVC = str(Path(sys.executable).parent / "gvc")


LONG = ["train.max_steps=60", "train.checkpoint_every_steps=7", "train.log_every_steps=5", "model.dropout=0.1"]


@pytest.mark.parametrize("head", ["dense", "grouped"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_and_resumed_equals_uninterrupted(gvc, tiny, head, number, code):
    words = ["train", *tiny, *LONG, f"head={head}", "train.grad_accum_steps=2"]
    assert gvc(*words, "hydra.run.dir=whole").code == 0
    gate = Gate(14)
    command = [GVC, *words, "hydra.run.dir=cut"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=gate.environment)
    gate.wait(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert json.loads((Path("cut") / "result.json").read_text())["state"] == "interrupted" if code > 0 else True
    again = gvc(*words, "train.resume=auto", "hydra.run.dir=cut")
    assert again.code == 0, again.err
    assert curve(Path("cut")) == curve(Path("whole"))
    assert saved_tensors(Path("cut")) == saved_tensors(Path("whole"))


@pytest.mark.parametrize(
    "options",
    [
        ["head=grouped", "model.embedding=factorised"],
        ["head=sampled", "optim.sparse_rows=true"],  # draws in training, too
    ],
)
def test_a_damaged_checkpoint_falls_back_and_ends_the_same(gvc, tiny, options):
    words = ["train", *tiny, *options, "train.checkpoint_every_steps=2"]
    assert gvc(*words, "hydra.run.dir=whole").code == 0
    assert gvc(*words, "hydra.run.dir=cut").code == 0
    expected = saved_tensors(Path("whole"))
    state = Path("cut/checkpoints/step-00000008/state.safetensors")
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(bytes(data))
    Path("cut/result.json").unlink()
    again = gvc(*words, "hydra.run.dir=cut")
    assert again.code == 0
    assert "trying the one before" in again.err
    assert curve(Path("cut")) == curve(Path("whole"))
    assert saved_tensors(Path("cut")) == expected


def test_a_head_cut_to_the_training_text_is_loaded_without_it(gvc, tiny, texts):
    run = gvc("train", *tiny, "head=trim", "head.tied=false", "hydra.run.dir=run").run_dir
    judged = json.loads(gvc("eval", str(run), "--json", "data.train=gone.txt").out)
    expected = json.loads((run / "result.json").read_text())["val/loss"]
    assert judged["val/loss"] == pytest.approx(expected, rel=1e-6)  # fp32 sums by blocks, for ranks, and in one piece


def test_a_complete_run_is_left_alone(gvc, tiny):
    assert gvc("train", *tiny, "hydra.run.dir=run").code == 0
    before = {p: p.stat().st_mtime_ns for p in Path("run").rglob("*") if p.is_file() and ".hydra" not in p.parts}
    assert gvc("train", *tiny, "hydra.run.dir=run").code == 0
    after = {p: p.stat().st_mtime_ns for p in Path("run").rglob("*") if p.is_file() and ".hydra" not in p.parts}
    assert {p for p in after if before.get(p) != after[p]} <= {Path("run/.lock"), Path("run/gvc.log")}


def test_another_config_in_the_same_folder_is_refused_and_changes_nothing(gvc, tiny):
    assert gvc("train", *tiny, "hydra.run.dir=run").code == 0
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    outcome = gvc("train", *tiny, "optim.lr=0.5", "hydra.run.dir=run")
    assert outcome.code == 6
    assert "optim.lr: 0.001 -> 0.5" in outcome.err
    assert gvc("train", *tiny, "train.resume=never", "hydra.run.dir=run").code == 3
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


def test_a_free_field_may_change(gvc, tiny):
    assert gvc("train", *tiny, "hydra.run.dir=run").code == 0
    assert gvc("train", *tiny, "train.log_every_steps=3", "hydra.run.dir=run").code == 0


def test_a_busy_folder_is_refused(gvc, tiny):
    from filelock import FileLock

    Path("run").mkdir()
    with FileLock("run/.lock"):
        outcome = gvc("train", *tiny, "hydra.run.dir=run")
    assert outcome.code == 3
    assert "in use by another gvc" in outcome.err


def test_a_validation_that_is_not_finite_is_a_divergence(gvc, tiny):
    words = ["head=dense", "train.max_steps=1", "optim.lr=1e9", "optim.warmup_steps=0", "hydra.run.dir=run"]
    outcome = gvc("train", *tiny, *words)
    assert outcome.code == 7
    assert "validation at step 1: the loss is not finite" in outcome.err
    assert json.loads(Path("run/result.json").read_text(encoding="utf-8"))["state"] == "failed"


def test_divergence_is_said_and_never_saved(gvc, tiny):
    outcome = gvc("train", *tiny, "optim.lr=1e9", "optim.warmup_steps=0", "optim.grad_clip=0", "hydra.run.dir=run")
    assert outcome.code == 7
    assert "diverged at step" in outcome.err.splitlines()[-1]
    assert "Error executing job" not in outcome.err
    for state in Path("run").rglob("state.safetensors"):
        import numpy as np

        assert all(np.isfinite(value).all() for name, value in load_file(state).items() if "model" in name)


def test_evaluation_on_the_way_does_not_change_the_run(gvc, tiny):
    gvc("train", *tiny, "model.dropout=0.1", "hydra.run.dir=plain")
    gvc("train", *tiny, "model.dropout=0.1", "train.eval_every_steps=3", "hydra.run.dir=judged")
    assert saved_tensors(Path("plain")) == saved_tensors(Path("judged"))
    assert sum("val/loss" in row for row in curve(Path("judged"))) == 3


def test_one_seed_is_one_run_and_another_is_not(gvc, tiny):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        gvc("train", *tiny, f"seed={seed}", f"hydra.run.dir={name}")
    assert saved_tensors(Path("a")) == saved_tensors(Path("b")) != saved_tensors(Path("c"))


def test_loss_falls_on_text_that_repeats(gvc, tiny):
    run = gvc("train", *tiny, "train.max_steps=150", "optim.lr=5e-3").run_dir
    losses = [row["train/loss"] for row in curve(run) if "train/loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_a_run_that_never_leaves_warm_up_is_told_so(gvc, tiny):
    said = gvc("train", *tiny, "optim.warmup_steps=8").err
    expected = "gvc: warning: optim.warmup_steps=8, train.max_steps=8: the learning rate rises to the end"
    assert said.splitlines().count(expected) == 1
    assert "optim.warmup_steps=7, train.max_steps=8: the learning rate never falls\n" in (
        gvc("train", *tiny, "optim.warmup_steps=7").err
    )
    assert "warmup_steps" not in gvc("train", *tiny, "optim.warmup_steps=6").err
