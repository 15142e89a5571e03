"""`train.dtype=float16`: steps that overflow are counted, shown and logged, and a killed run goes on to the bit."""

import contextlib
import json

import numpy as np
import pytest
import torch
from fault_tools import assert_same, fork_train, nothing_measured, train_to_end, wait
from processes import train_together
from run_outputs import curve
from test_resume import die_in_step

from grouped_lm.errors import DivergedError
from grouped_lm.evaluate.run import evaluate_run
from grouped_lm.generate import generate_texts
from grouped_lm.heads.losses.functional import HeadLoss
from grouped_lm.runs.checkpoint import load_latest
from grouped_lm.train.loop import train


@contextlib.contextmanager
def scaler_with(**options):
    """Let the scale of the loss begin and grow otherwise."""
    made = torch.amp.GradScaler
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.amp, "GradScaler", lambda device, enabled: made(device, enabled=enabled, **options))
        yield


@pytest.fixture
def large_scale():
    """A scale at which the first steps overflow, and again after it has grown."""
    with scaler_with(init_scale=2.0**21, growth_interval=3):
        yield


@pytest.fixture
def half(config):
    return lambda **train: config("grouped", dtype="float16", max_steps=12, checkpoint_every_steps=1, **train)


def saved_scale(run_dir) -> dict:
    return json.loads(load_latest(run_dir / "checkpoints", quarantine=False)[1]["state.json"])["loss_scale"]


def test_killed_and_resumed_is_byte_equal_scale_included(half, large_scale, tmp_path):
    made = half(dropout=0.1)
    train_to_end(made, tmp_path / "whole")
    for step, micro_step in ((2, None), (5, 1), (9, None)):
        code = wait(fork_train(made, tmp_path / "cut", lambda at=(step, micro_step): die_in_step(*at)))
        assert code == -9, (tmp_path / "cut.log").read_text()[-2000:]
    train_to_end(made, tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole", "float16", 0)
    assert saved_scale(tmp_path / "cut") == saved_scale(tmp_path / "whole")
    rows = [row for row in curve(tmp_path / "whole") if "train/loss" in row]
    assert [row["train/overflow_steps"] for row in rows] == sorted(row["train/overflow_steps"] for row in rows)
    assert rows[0]["train/overflow_steps"] < rows[-1]["train/overflow_steps"]  # at the start, and after growth
    said = (tmp_path / "whole.log").read_text()
    assert said.count("its float16 gradient overflowed; loss scale") == rows[-1]["train/overflow_steps"]
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["train/overflow_steps"] == rows[-1]["train/overflow_steps"]
    assert result["train/loss_scale"] == rows[-1]["train/loss_scale"]


def test_a_scale_that_falls_to_nothing_ends_the_run_with_one_line(half, monkeypatch, tmp_path):
    objective = HeadLoss.objective
    monkeypatch.setattr(HeadLoss, "objective", lambda self: objective(self) * float("inf"))
    with nothing_measured(), scaler_with(init_scale=2.0**-11), pytest.raises(DivergedError) as raised:
        train(half(), tmp_path / "run")
    assert str(raised.value) == (
        "train.dtype=float16: gradients overflow at step 3 even with a loss scale of 6.10352e-05 (4 steps left out so "
        "far); take train.dtype=bfloat16 or float32, or a lower optim.lr"
    )


def test_a_rollback_returns_to_the_scale_of_the_checkpoint(half, monkeypatch, tmp_path):
    objective, calls = HeadLoss.objective, []

    def poisoned(self):
        calls.append(0)
        if len(calls) == 11:  # a loss that is NaN is no overflow
            self.nll = self.nll * float("nan")
        return objective(self)

    monkeypatch.setattr(HeadLoss, "objective", poisoned)
    with nothing_measured(), scaler_with(init_scale=256.0, growth_interval=100):
        result = train(half(on_nonfinite="rollback"), tmp_path / "run")
    assert (result["train/nonfinite_steps"], result["train/overflow_steps"]) == (1, 0)
    assert result["train/loss_scale"] == 256


def losses_and_scales(run_dir) -> list[list[float]]:
    keys = "train/loss", "train/loss_scale", "train/overflow_steps"
    return [[row[key] for key in keys] for row in curve(run_dir) if "train/loss" in row]


def test_two_processes_agree_on_the_steps_to_leave_out(half, large_scale, tmp_path):
    """Each has a part of the gradients, so an overflow of one has to be everybody's, whole or in shards."""
    for strategy in ("ddp", "fsdp2"):
        train_together(2, half(), tmp_path / strategy, strategy)
    rows = losses_and_scales(tmp_path / "ddp")
    assert rows[-1][2] > rows[0][2] > 0
    assert np.array(rows) == pytest.approx(np.array(losses_and_scales(tmp_path / "fsdp2")), abs=1e-4)


def test_two_processes_train_as_one_does(half, tmp_path):
    with scaler_with(init_scale=1024.0):
        for processes in (1, 2):
            train_together(processes, half(dropout=0.0), tmp_path / str(processes))
    one, two = (np.array(losses_and_scales(tmp_path / name)) for name in "12")
    assert two == pytest.approx(one, abs=5e-3)


def test_evaluation_and_sampling_read_a_float16_run(half, tmp_path):
    made = half()
    train_to_end(made, tmp_path / "run")
    evaluation = evaluate_run(tmp_path / "run", made, samples=0)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert evaluation.metrics["val/loss"] == pytest.approx(result["val/loss"], rel=1e-3)
    assert len(list(generate_texts(tmp_path / "run", made, seed=1, max_new_tokens=5))) == 1
