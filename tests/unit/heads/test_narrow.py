"""Compressed heads make no tensor as wide as the vocabulary, and no step of theirs waits for the device."""

import numpy as np
import pytest
import torch
from head_cases import batch_of, head_of, plain_shortlist
from torch.utils._python_dispatch import TorchDispatchMode

from grouped_lm.config import AdamWConfig, Config, ModelConfig, TokenizerConfig
from grouped_lm.evaluate.scoring import score_hidden
from grouped_lm.heads import HEADS
from grouped_lm.heads.decoding.truncation import Truncation
from grouped_lm.heads.losses import functional
from grouped_lm.optim import build_optimizer
from grouped_lm.plan.fake_step import fake_model, faking, make_state, watch_step

N, V, S, D = 128, 8_001, 90, 8
COMPRESSED = ["grouped", "film", "class_full", "shortlist"]
"""Not `adaptive`: what it reads of a rare token is its whole cluster, most of V."""


class Widest(TorchDispatchMode):
    """Records the most numbers that any operator's result has."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else [found]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return found


def peaked_head(name):
    """A head whose groups differ, as a trained one's do: the best first groups settle every truncation."""
    head = head_of(name, V, S, torch.float32, width=D, directions=2, shortlist_size=90)
    for parameter in head.parameters():
        parameter.data.mul_(3)
    return head


@pytest.mark.parametrize("name", COMPRESSED)
def test_training_evaluation_and_sampling_make_no_tensor_of_n_by_v(name):
    head, (hidden, targets) = peaked_head(name), batch_of(V, N, dtype=torch.float32, width=D)
    generator = torch.Generator().manual_seed(0)
    ways = {
        "training": lambda: head.train().loss(hidden, targets).nll.backward(),
        "per token": lambda: head.loss(hidden, targets, reduction="none").nll.sum().backward(),
        "evaluation": lambda: score_hidden(head, hidden.detach(), targets.clamp_min(0)),
        "plain sampling": lambda: head.sample(hidden.detach(), generator),
        "greedy": lambda: head.argmax(hidden.detach()),
        "top-k": lambda: head.sample(hidden.detach(), generator, truncation=Truncation(top_k=5)),
        "top-p": lambda: head.sample(hidden.detach(), generator, truncation=Truncation(top_p=0.5)),
    }
    for way, run in ways.items():
        with Widest() as widest:
            run()
        head.eval()
        assert widest.numbers < N * V / 2, f"{way}: {widest.numbers / N:.0f} numbers a state"


def test_the_recorder_sees_the_full_softmax():
    head = head_of("dense", V, dtype=torch.float32, width=D)
    hidden, targets = batch_of(V, N, dtype=torch.float32, width=D)
    with Widest() as widest:
        head.loss(hidden, targets)
    assert widest.numbers >= N * V


def step_of(head):
    model = ModelConfig(n_layer=1, n_head=2, n_embd=D, block_size=16)
    config = Config(model=model, head=head, tokenizer=TokenizerConfig(name="bytes"), optim=AdamWConfig())
    lm = fake_model(config, counts=np.arange(257))
    optimizer = build_optimizer(config.optim, lm)
    make_state(lm, optimizer)
    batch = torch.zeros(2, 16, dtype=torch.int64)
    watch_step(config, lm, optimizer, lambda: (batch, batch))


STEPS = {
    **{name: HEADS[name].schema() for name in ("dense", "grouped", "film", "class_full", "shortlist", "trim")},
    "adaptive": HEADS["adaptive"].schema(cutoffs=[50, 120]),
    "sampled": HEADS["sampled"].schema(samples=64),
    "dense in chunks": HEADS["dense"].schema(chunk_rows=8),
    "shortlist with all": plain_shortlist(shortlist_size=50, group_size=20, directions=0, shared_rows=30, reserve=True),
    "shortlist of its own": plain_shortlist(shortlist_size=50, directions=4, own_shortlist=True, start="counts"),
    "low_rank": HEADS["low_rank"].schema(rank=4),
}


@pytest.mark.parametrize("head", STEPS.values(), ids=STEPS)
def test_a_step_under_fake_tensors_needs_no_number_from_the_device(head, monkeypatch):
    """A host sync (`.item()`, `.tolist()`, a mask as an index) raises where tensors have no numbers."""
    monkeypatch.setattr(functional, "_static_sizes", True)  # as for a CUDA graph
    with faking():
        step_of(head)


def test_every_head_is_among_the_fake_steps():
    assert {head.name for head in STEPS.values()} == set(HEADS)


def test_a_host_sync_is_noticed(monkeypatch):
    from grouped_lm.heads.grouped import GroupedHead

    loss = GroupedHead.loss

    def waits(self, hidden, targets, **more):
        return loss(self, hidden * float(targets.sum() + 1), targets, **more)

    monkeypatch.setattr(GroupedHead, "loss", waits)
    with pytest.raises(Exception, match=r"item|_local_scalar_dense|data-dependent"), faking():
        step_of(HEADS["grouped"].schema())
