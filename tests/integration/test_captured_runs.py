"""`train.cuda_graphs` in whole runs: the record and the checkpoints of a run without, on a CPU that records graphs."""

import pytest
import recorded_graphs
from grouped_lm.cli.compose.compose import HydraFlags, compose_jobs
from run_outputs import left_by

from grouped_lm.heads import shortlist
from grouped_lm.heads.losses import functional
from grouped_lm.train import capture
from grouped_lm.train.loop import train
from grouped_lm.train.session import TrainingRun


@pytest.fixture
def make_config(tiny, workdir, monkeypatch):
    monkeypatch.setattr(functional, "may_look", lambda values: False)  # as on a GPU, and so below
    monkeypatch.setattr(shortlist, "at_once", lambda *_: False)
    monkeypatch.setattr(capture, "cuda_of", lambda device: recorded_graphs)
    words = ["train.max_steps=9", "train.checkpoint_every_steps=4", "train.eval_every_steps=5", "model.dropout=0.1"]
    words += ["train.grad_accum_steps=2", "optim.grad_clip=0.5", "train.log_every_steps=3"]

    def make(*more):
        return compose_jobs([*tiny, *words, *more], HydraFlags())[0][0]

    yield make
    functional.set_static_sizes(False)


@pytest.mark.parametrize(
    "words",
    [["head=shortlist", "head.shortlist_size=20", "grouping=frequency"], ["head=grouped", "train.dtype=float16"]],
    ids=["shortlist", "float16"],
)
def test_a_captured_run_that_was_resumed_is_a_plain_run_to_the_bit(words, make_config, workdir, monkeypatch):
    train(make_config(*words), workdir / "plain")
    captured, replays = make_config(*words, "train.cuda_graphs=true"), recorded_graphs.CUDAGraph.replays
    make_step = TrainingRun.make_step

    def killed(self):
        if self.progress.step == 7:
            raise KeyboardInterrupt
        make_step(self)

    monkeypatch.setattr(TrainingRun, "make_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(captured, workdir / "captured")
    monkeypatch.setattr(TrainingRun, "make_step", make_step)
    assert train(captured, workdir / "captured")["state"] == "complete"
    assert recorded_graphs.CUDAGraph.replays - replays == (7 - 3) + (9 - 4 - 3)
    assert left_by(workdir / "captured") == left_by(workdir / "plain")


def test_a_captured_run_goes_back_as_a_plain_one(make_config, workdir, monkeypatch):
    words = ["head=grouped", "train.on_nonfinite=rollback", "train.log_every_steps=1"]
    micro_batches = TrainingRun._micro_batches

    def poisoned(self):
        for number, batch in enumerate(micro_batches(self)):
            if self.progress.step == 6 and not self.history.skipped_steps and not number:
                self.model.body.wpe.weight.data[0, 0] = float("inf")
            yield batch

    monkeypatch.setattr(TrainingRun, "_micro_batches", poisoned)
    train(make_config(*words), workdir / "plain")
    train(make_config(*words, "train.cuda_graphs=true"), workdir / "captured")
    assert left_by(workdir / "captured") == left_by(workdir / "plain")
    assert any(row.get("train/nonfinite_steps") for row in left_by(workdir / "plain")[0])
