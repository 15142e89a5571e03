"""The loop reads its figures late on a GPU: the same record, weights and errors, and no step waits for the device."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from grouped_lm.cli.compose.compose import HydraFlags, compose_jobs
from run_outputs import left_by
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import grouped_lm.optim.training_step
from grouped_lm.config import AdamWConfig
from grouped_lm.data.loader import Prefetcher
from grouped_lm.errors import DivergedError
from grouped_lm.heads import shortlist
from grouped_lm.heads.losses import functional
from grouped_lm.heads.losses.functional import HeadLoss
from grouped_lm.measure.memory import StepMemory
from grouped_lm.models.lm import LanguageModel
from grouped_lm.optim import build_optimizer
from grouped_lm.optim.adamw import SparseRowsAdamW
from grouped_lm.optim.training_step import StepMetricsBuffer, measure
from grouped_lm.train import progress
from grouped_lm.train.loop import train

CPU = torch.device("cpu")


@pytest.fixture
def make_config(tiny, workdir):
    def make(*words):
        short = ["train.max_steps=12", "train.checkpoint_every_steps=4", "model.dropout=0.1", "train.threads=1"]
        return compose_jobs([*tiny, *short, *words], HydraFlags())[0][0]

    return make


@pytest.fixture
def late(monkeypatch):
    """Read as on a GPU."""
    return lambda: monkeypatch.setattr(grouped_lm.optim.training_step, "reads_at_once", lambda device: False)


@contextlib.contextmanager
def poisoned(*places: int):
    """Make the loss of the given micro-batches NaN: by their text, since going back changes how many came before."""
    original, seen = LanguageModel.forward, []
    load = Prefetcher.batch

    def batch(self, index):
        seen.append(index)
        return load(self, index)

    def forward(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.training and seen and seen[-1] in places:
            loss.nll = loss.nll * float("nan")
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "forward", forward)
        patch.setattr(Prefetcher, "batch", batch)
        yield


@pytest.mark.parametrize(
    ("words", "places"),
    [
        (["train.log_every_steps=5", "train.eval_every_steps=3", "train.grad_accum_steps=2"], ()),
        (["train.log_every_steps=3", "train.on_nonfinite=skip"], (4, 6)),
        (["train.log_every_steps=3", "train.on_nonfinite=rollback"], (4, 9)),
        (["train.log_every_steps=5", "train.on_nonfinite=skip", "optim.sparse_rows=true"], (0, 7)),
        (["train.log_every_steps=4", "train.on_nonfinite=skip", "train.dtype=float16", "head=grouped"], (7,)),
    ],
    ids=["finite", "skip", "rollback", "sparse rows", "float16"],
)
def test_figures_read_late_change_nothing(words, places, make_config, late, workdir):
    config = make_config(*words)
    with poisoned(*places):
        train(config, workdir / "at-once")
        late()
        train(config, workdir / "late")
    rows, weights = left_by(workdir / "late")
    assert (rows, weights) == left_by(workdir / "at-once")
    assert max(row.get("train/nonfinite_steps", 0) for row in rows) == len(places)
    assert all(
        np.isfinite(np.frombuffer(value, np.float32)).all()
        for name, value in weights.items()
        if not any(word in name for word in ("rng", "token_to_", "sharing"))  # whole numbers
    )


def test_going_back_counts_time_once_and_no_speed_below_zero(make_config, workdir, monkeypatch):
    """On a clock of our own, a second a batch: 11 batches up to the bad one, then 4 from step 8 on."""
    config = make_config("train.log_every_steps=1", "train.on_nonfinite=rollback", "train.max_steps=12")
    load, now = Prefetcher.batch, [0.0]

    def batch(self, index):
        now[0] += 1.0
        return load(self, index)

    monkeypatch.setattr(Prefetcher, "batch", batch)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with poisoned(10):
        result = train(config, workdir / "run")
    assert result["time/total_s"] == now[0] == 15.0
    rows = [json.loads(line) for line in (workdir / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["throughput/tokens_per_sec"] for row in rows if row.get("throughput/tokens_per_sec") is not None]
    assert rates
    assert min(rates) > 0


@pytest.mark.parametrize("words", [[], ["train.on_nonfinite=skip", "train.max_nonfinite=0"]], ids=["raise", "limit"])
def test_a_step_that_ends_the_run_is_named_late_too(words, make_config, late, workdir):
    config = make_config("train.log_every_steps=4", *words)
    said = []
    for name in ("at-once", "late"):
        with poisoned(5), pytest.raises(DivergedError) as error:
            train(config, workdir / name)
        said.append(str(error.value))
        late()
    assert said[0] == said[1]
    assert said[0].startswith("diverged at step 5: loss nan, gradient norm nan, learning rate ")
    assert [p.name for p in (workdir / "late" / "checkpoints").iterdir()] == ["step-00000004"]


READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero", "masked_select")


class Read(AssertionError):
    pass


class NoPythonReads(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READS:
            raise Read(func.__name__)
        return func(*args, **(kwargs or {}))


class NoOperatorReads(TorchDispatchMode):
    """Operators whose result's shape or value the host must know."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, masks = str(func), args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_mask = "aten.index" in name and any(m is not None and m.dtype is torch.bool for m in masks)
        if by_mask or any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "_unique")):
            raise Read(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def nothing_read(monkeypatch, late):
    """Let every optimizer step of the loop raise where it reads a number; give the steps that were watched."""
    late()
    steps, watch = [], StepMemory.watch

    @contextlib.contextmanager
    def watching(self, steps_before):
        with watch(self, 99):  # the meter's own steps read
            if steps_before < 1:  # the optimizer makes its state
                yield
            else:
                with NoOperatorReads(), NoPythonReads():
                    yield
                steps.append(steps_before)

    monkeypatch.setattr(StepMemory, "watch", watching)
    monkeypatch.setattr(functional, "may_look", lambda values: False)  # as on a GPU, and so below
    monkeypatch.setattr(shortlist, "at_once", lambda *_: False)
    return steps


@pytest.mark.parametrize("words", [["head=dense"], ["head=grouped"], ["head=shortlist"]], ids=" ".join)
def test_a_step_of_the_loop_reads_nothing(words, make_config, nothing_read, workdir):
    own = ["head.own_shortlist=true", "head.start=counts", "head.directions=4", "head.shortlist_size=40"]
    config = make_config(*words, *(own if "shortlist" in words[0] else []), "train.grad_accum_steps=2")
    assert train(config, workdir / "run")["state"] == "complete"
    assert nothing_read == list(range(1, 12))


def test_a_read_in_a_step_is_noticed(make_config, nothing_read, workdir, monkeypatch):
    objective = HeadLoss.objective
    monkeypatch.setattr(HeadLoss, "objective", lambda self: objective(self) * (1.0 if self.nll > 0 else 2.0))
    with pytest.raises(Read):
        train(make_config("head=grouped"), workdir / "run")


@pytest.mark.parametrize("sparse", [False, True])
def test_an_update_that_is_not_finite_is_passed_over(sparse):
    torch.manual_seed(0)
    model, ids = torch.nn.Embedding(6, 4), torch.arange(3)
    options = {"lr": 0.1, "fused": True}
    optimizer = (
        SparseRowsAdamW([{"params": model.parameters()}], [model.weight], **options)
        if sparse
        else build_optimizer(AdamWConfig(), model)
    )
    unread, before = StepMetricsBuffer(CPU), model.weight.detach().clone()

    def step(scale):
        optimizer.zero_grad()
        loss = model(ids).square().sum() * scale
        loss.backward()
        unread.add(measure(optimizer, [HeadLoss(loss)], model.weight.grad.norm()), 0, 0.1)
        optimizer.step()

    step(float("inf"))
    assert torch.equal(model.weight, before)
    step(1.0)
    assert optimizer.state[model.weight]["step"] == 1
    assert not torch.equal(model.weight, before)
    assert [figures.finite for figures in unread.read()] == [False, True]
    assert unread.read() == []


def test_batches_sent_ahead_are_those_asked_for():
    loaded = []

    def load(index):
        loaded.append(index)
        return torch.tensor([index]), torch.tensor([-index])

    prefetcher = Prefetcher(load, CPU, ahead=True)
    given = []
    for index in (0, 1, 5, 6):  # after 1 the loop went back and on elsewhere
        given.append([int(part) for part in prefetcher.batch(index)])
        prefetcher.prefetch(index + 1)
    assert given == [[0, 0], [1, -1], [5, -5], [6, -6]]
    assert loaded == [0, 1, 2, 5, 6, 7]
