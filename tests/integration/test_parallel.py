"""Several processes compute what one computes, whatever shards the model, and read what the others have saved."""

import dataclasses
import gc
import json
import os
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fault_tools import final_state, nothing_measured
from processes import OPTIONS, together, train_together, with_head
from run_outputs import curve, newest_checkpoint
from safetensors.torch import load_file

import grouped_lm.train.setup as train_setup
from grouped_lm.distributed.process_group import agree_on_attempt, group_timeout
from grouped_lm.errors import DivergedError, MemoryShortError
from grouped_lm.runs.checkpoint import list_checkpoints
from grouped_lm.train.loop import train

STRATEGIES = ("ddp", "fsdp2")
CLOSE = 1e-5
"""Nats: the same sums in another order."""


def assert_same_curve(run_dir: Path, reference: Path) -> None:
    """Hold every loss, gradient norm and learning rate of two records against each other."""
    for row, expected in zip(curve(run_dir), curve(reference), strict=True):
        assert row.keys() == expected.keys()
        for key, value in row.items():
            tolerance = 1e-4 * abs(value) if key.endswith(("perplexity", "grad_norm")) else CLOSE
            assert value == pytest.approx(expected[key], abs=tolerance), key


def drop_last_checkpoint(run_dir: Path) -> int:
    """Leave the run as it was at the checkpoint before the last; return that one's step."""
    before, last = list_checkpoints(run_dir / "checkpoints")[-2:]
    shutil.rmtree(last)
    (run_dir / "result.json").unlink()
    return int(before.name[5:])


@pytest.mark.parametrize("head", OPTIONS)
def test_two_processes_train_as_one_does_and_their_checkpoints_are_anyones(head, config, tmp_path):
    made = with_head(config(head, checkpoint_every_steps=10, micro_batch_size=2, grad_accum_steps=2), head)
    train_together(1, made, tmp_path / "one")
    total = json.loads((tmp_path / "one" / "result.json").read_text())["params/total"]
    for strategy in STRATEGIES:
        run_dir = tmp_path / strategy
        train_together(2, made, run_dir, strategy)
        assert_same_curve(run_dir, tmp_path / "one")
        assert json.loads((run_dir / "result.json").read_text())["params/total"] == total
        assert final_state(run_dir).keys() == {*final_state(tmp_path / "one"), "rng/1/cpu"}
        assert drop_last_checkpoint(run_dir) == 10
        train_together(1, made, run_dir)
        assert_same_curve(run_dir, tmp_path / "one")
        shutil.copytree(tmp_path / "one", tmp_path / f"one-{strategy}")
        assert drop_last_checkpoint(tmp_path / f"one-{strategy}") == 10
        train_together(2, made, tmp_path / f"one-{strategy}", strategy)
        assert_same_curve(tmp_path / f"one-{strategy}", tmp_path / "one")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_go_on_to_the_bit_with_dropout_on(strategy, config, tmp_path):
    made = config("grouped", dropout=0.1, checkpoint_every_steps=4, max_steps=8, eval_every_steps=3)
    train_together(2, made, tmp_path / "whole", strategy)
    train_together(2, made, tmp_path / "cut", strategy)
    assert drop_last_checkpoint(tmp_path / "cut") == 4
    train_together(2, made, tmp_path / "cut", strategy)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")


def test_two_processes_start_from_another_run_as_one_does(config, tmp_path):
    train_together(2, config("shortlist", max_steps=4), tmp_path / "source", "fsdp2")
    made = dataclasses.replace(config("shortlist", max_steps=4), init_from=str(tmp_path / "source"))
    train_together(1, made, tmp_path / "one")
    for strategy in STRATEGIES:
        train_together(2, made, tmp_path / strategy, strategy)
        assert_same_curve(tmp_path / strategy, tmp_path / "one")
    fresh = config("shortlist", max_steps=4)
    train_together(1, fresh, tmp_path / "fresh")
    assert curve(tmp_path / "fresh") != curve(tmp_path / "one")


def test_two_processes_agree_on_the_micro_batch(config, tmp_path):
    batch = {"max_steps": 4, "checkpoint_every_steps": 2}
    made = config("dense", auto_micro_batch=True, micro_batch_size=2, grad_accum_steps=3, **batch)
    train_together(2, made, tmp_path / "auto")
    saved = json.loads((tmp_path / "auto" / "config.json").read_text())["train"]
    assert [saved[key] for key in ("micro_batch_size", "grad_accum_steps")] == [6, 1]
    train_together(2, config("dense", micro_batch_size=6, grad_accum_steps=1, **batch), tmp_path / "hand")
    assert curve(tmp_path / "auto") == curve(tmp_path / "hand")
    assert drop_last_checkpoint(tmp_path / "auto") == 2
    train_together(1, made, tmp_path / "auto")  # one process continues with the same size
    assert_same_curve(tmp_path / "auto", tmp_path / "hand")


def test_each_process_draws_its_own_dropout(config, tmp_path):
    made = config("grouped", dropout=0.5, max_steps=2, hang_minutes=None)
    train_together(2, made, tmp_path / "run")
    state = final_state(tmp_path / "run")
    assert state["rng/1/cpu"] != state["rng/cpu"]


def test_rows_of_tables_that_no_token_touched_stand_still_in_shards_too(config, tmp_path):
    made = config("dense", max_steps=6)
    made = dataclasses.replace(made, optim=dataclasses.replace(made.optim, sparse_rows=True))
    train_together(1, made, tmp_path / "one")
    train_together(2, made, tmp_path / "two", "fsdp2")
    assert_same_curve(tmp_path / "two", tmp_path / "one")


def test_the_average_of_sharded_weights_is_that_of_whole_ones(config, tmp_path):
    made = config("dense", max_steps=6, eval_every_steps=3)
    made = dataclasses.replace(made, optim=dataclasses.replace(made.optim, ema=0.9))
    train_together(1, made, tmp_path / "one")
    train_together(2, made, tmp_path / "two", "fsdp2")
    assert_same_curve(tmp_path / "two", tmp_path / "one")
    whole, sharded = (load_file(newest_checkpoint(tmp_path / name) / "state.safetensors") for name in ("one", "two"))
    averages = [key for key in whole if key.endswith("/ema")]
    assert averages
    for key in averages:
        torch.testing.assert_close(sharded[key], whole[key], rtol=1e-4, atol=1e-6)
        assert not torch.equal(sharded[key], sharded[key.replace("optim/", "model/").removesuffix("/ema")])


def test_an_error_is_every_process_s_own(config, tmp_path):
    made = config("grouped", max_steps=8, on_nonfinite="raise")
    made = dataclasses.replace(made, optim=dataclasses.replace(made.optim, lr=1e9, warmup_steps=0, grad_clip=0))

    def action() -> None:
        with nothing_measured():
            train(made, tmp_path / "run")

    assert together(2, action, tmp_path / "run") == [DivergedError.exit_code] * 2
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "failed"


def test_an_error_of_one_process_alone_is_everybody_s_after_the_restart(config, tmp_path):
    made = config("grouped", max_steps=4)

    def action() -> None:
        def short(*_: Any) -> None:
            raise MemoryShortError("no room for this one")

        if os.environ["RANK"] == "1":
            train_setup.set_threads = short
        with nothing_measured():
            train(made, tmp_path / "run")

    store = dist.TCPStore("localhost", 0, is_master=True)
    codes = together(2, action, tmp_path / "first", store.port)
    assert codes[1] == MemoryShortError.exit_code
    assert codes[0] not in (0, MemoryShortError.exit_code)  # whom it was lost to
    assert not (tmp_path / "run" / "result.json").exists()
    assert together(2, lambda: train(made, tmp_path / "run"), tmp_path / "again", store.port) == [8, 8]


def test_what_the_first_process_is_refused_all_are(config, tmp_path):
    made = config("grouped", max_steps=2)
    train_together(2, made, tmp_path / "run")
    other = dataclasses.replace(made, seed=5)

    def action() -> None:
        train(other, tmp_path / "run")

    assert together(2, action, tmp_path / "other") == [6, 6]


def test_a_process_group_of_three_agrees(tmp_path):
    def action() -> None:
        from grouped_lm.distributed.process_group import join_process_group, rank_and_size
        from grouped_lm.errors import DataError

        with join_process_group(1, torch.device("cpu")) as process_group:
            rank, size = rank_and_size()
            assert (process_group.rank, process_group.size) == (rank, size) == (rank, 3)
            assert process_group.on_first(lambda: {"from": rank}) == {"from": 0}
            assert process_group.any(rank == 2, False) == (True, False)
            assert process_group.sum(torch.tensor([1.5, rank])).tolist() == [4.5, 3]
            assert [t.item() for t in process_group.gather(torch.tensor(rank * 2))] == [0, 2, 4]
            filled = torch.zeros(2)
            process_group.broadcast(filled, torch.ones(2) if rank == 0 else None)
            assert filled.tolist() == [1, 1]

            def refuse() -> None:
                raise DataError("no text")

            with pytest.raises(DataError, match="no text"):
                process_group.on_first(refuse)
            with pytest.raises(OSError, match="full"):
                process_group.on_first(lambda: (_ for _ in ()).throw(OSError(28, "full")))

    assert together(3, action, tmp_path / "world") == [0, 0, 0], (tmp_path / "world.0.log").read_text()


def test_waiting_for_the_others_ends_after_the_watchdog():
    assert [group_timeout(minutes).total_seconds() / 60 for minutes in (0.5, 60.0)] == [30, 61]
    assert group_timeout(None) == group_timeout(1e6) == timedelta(days=365)


def test_every_attempt_has_a_number_of_its_own_whatever_lost_processes_have_left():
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))

    def join(*ranks: int) -> list[int]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda rank: agree_on_attempt(store, rank, 3), ranks))

    assert join(1, 2, 0) == [1, 1, 1]
    store.set("token-2", "of one that was lost before it heard an answer")
    store.add("attempts", 1)  # and the first was lost, too
    assert join(0, 1, 2) == [3, 3, 3]


def test_the_model_of_a_finished_run_is_deleted_at_once(config, tmp_path, monkeypatch):
    """A DDP model that the garbage collector deletes after its process group can hang."""
    from grouped_lm.train.session import TrainingRun

    original, alive = TrainingRun.__init__, []

    def remember(self, *args):
        original(self, *args)
        alive.append(weakref.ref(self.model))

    monkeypatch.setattr(TrainingRun, "__init__", remember)
    gc.collect()
    gc.disable()
    try:
        with nothing_measured():
            train(config(max_steps=2), tmp_path / "run")
        assert [model() for model in alive] == [None]
    finally:
        gc.enable()
