"""Rows that the training text never has: left out of gradient and optimizer, and the same bits as dense AdamW."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from grouped_lm.config import Config, ModelConfig, TokenizerConfig, TrainConfig
from grouped_lm.distributed.parallel import ParallelModel
from grouped_lm.distributed.process_group import SINGLE_PROCESS
from grouped_lm.grouping import parse_grouping
from grouped_lm.heads import parse_head_config
from grouped_lm.models.lm import build_lm
from grouped_lm.optim import build_optimizer, parse_optim_config, set_learning_rate, used_rows
from grouped_lm.optim.training_step import TrainingStep
from grouped_lm.optim.used_rows import UsedRows, leave_out_unused_rows
from grouped_lm.runs.train_state import pack, unpack

CPU = torch.device("cpu")
V = 700
TEXT = 3 * np.random.default_rng(0).zipf(1.3, 4000).clip(0, 150)  # a fifth of the tokens
COUNTS = np.bincount(TEXT, minlength=V)
SHORTLIST = {"name": "shortlist", "shortlist_size": 20, "group_size": 10}
HEADS = {
    "sparse gradient": SHORTLIST,
    "dense gradient": SHORTLIST | {"directions": 2},
    "not tied": {"name": "grouped"},
    "trim": {"name": "trim", "bias": True},
    "untied dense": {"name": "dense", "tied": False},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(used_rows, "LEAST_UNUSED", 1)


def new_step(head=SHORTLIST, rows=True, accum=1, dropout=0.0, seed=0, **optim) -> TrainingStep:
    config = Config(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=12, dropout=dropout),
        head=parse_head_config(head),
        grouping=parse_grouping("frequency" if head["name"] == "shortlist" else "merge_rank"),
        tokenizer=TokenizerConfig(name="bytes"),
        optim=parse_optim_config({"name": "adamw", "weight_decay": 0.3} | optim),
        train=TrainConfig(grad_accum_steps=accum),
    )
    torch.manual_seed(seed)
    model = build_lm(config, lambda: COUNTS, vocab_size=V).train()
    if rows:
        leave_out_unused_rows(config, model, lambda: COUNTS)
    optimizer = build_optimizer(config.optim, model)
    return TrainingStep(config, ParallelModel(model, SINGLE_PROCESS, model), optimizer, CPU)


def train(step: TrainingStep, first: int, last: int) -> list[tuple[float, float]]:
    """Run steps on the text, with a learning rate that changes; return losses and gradient norms."""
    accum = step.config.train.grad_accum_steps
    torch.manual_seed(first)  # for dropout: two steps take turns
    for number in range(first, last):
        set_learning_rate(step.optimizer, lr := 0.01 / (1 + number))
        losses = []
        for micro_step in range(accum):
            starts = np.random.default_rng(accum * number + micro_step).integers(0, len(TEXT) - 13, 4)
            windows = torch.from_numpy(np.stack([TEXT[start : start + 13] for start in starts]))
            losses.append(step.forward_backward(windows[:, :-1], windows[:, 1:], is_last=micro_step == accum - 1))
        step.update(losses, number, lr)
    return [(metrics.losses["train/loss"], metrics.grad_norm) for metrics in step.metrics.read()]


def saved(step: TrainingStep) -> dict[str, bytes]:
    return pack(step.model.model, step.optimizer, {"progress": {"step": 0}})


def embedding(step: TrainingStep):
    return step.model.model.body.wte


@pytest.mark.parametrize(
    "optim", [{}, {"name": "muon"}, {"grad_clip": 0.0, "weight_decay": 0.0}, {"table_weight_decay": 0.5}], ids=str
)
@pytest.mark.parametrize("head", HEADS)
def test_losses_norms_and_checkpoints_are_those_of_the_whole_table_to_the_bit(head, optim):
    rows, whole = (new_step(HEADS[head], rows, accum=2, dropout=0.1, **optim) for rows in (True, False))
    assert isinstance(embedding(rows), UsedRows)
    assert len(embedding(rows).weight) < V / 2
    for first, last in pairwise((0, 1, 3, 6)):  # a checkpoint in between changes nothing
        assert train(rows, first, last) == train(whole, first, last)
        assert saved(rows) == saved(whole)


def test_targets_in_reserved_groups_train_all_rows_of_those(monkeypatch):
    """A run that starts from another one's groups may have them."""
    steps = [new_step(rows=False), new_step(rows=False)]
    head = steps[0].model.model.head
    group = int(head.token_to_group.max())
    assert group >= head.n_learned
    here = (head.token_to_group == group).nonzero().squeeze(1)
    text = np.where(TEXT == 6, here[0].item(), TEXT)
    monkeypatch.setitem(globals(), "TEXT", text)
    left_out = leave_out_unused_rows(steps[0].config, steps[0].model.model, lambda: np.bincount(text, minlength=V))
    assert left_out is not None
    assert (left_out.row_of[here] >= 0).all()
    step = TrainingStep(
        steps[0].config, steps[0].model, build_optimizer(steps[0].config.optim, steps[0].model.model), CPU
    )
    assert train(step, 0, 3) == train(steps[1], 0, 3)
    assert saved(step) == saved(steps[1])


@pytest.mark.parametrize("head", [{"name": "dense"}, {"name": "class_full"}, {"name": "sampled"}], ids=str)
def test_a_head_that_trains_all_rows_keeps_them(head):
    assert isinstance(embedding(new_step(head)), torch.nn.Embedding)


@pytest.mark.parametrize("optim", [{"sparse_rows": True}], ids=str)
def test_an_optimizer_that_leaves_rows_as_they_are_keeps_them_all(optim):
    assert isinstance(embedding(new_step(**optim)), torch.nn.Embedding)


def test_a_small_gain_is_not_worth_it(monkeypatch):
    monkeypatch.setattr(used_rows, "LEAST_UNUSED", 16 * V)
    assert isinstance(embedding(new_step()), torch.nn.Embedding)
    monkeypatch.undo()
    monkeypatch.setattr(used_rows, "LARGEST_SHARE", 0.1)
    assert isinstance(embedding(new_step()), torch.nn.Embedding)


@pytest.mark.parametrize("head", ["sparse gradient", "not tied"])
@pytest.mark.parametrize("writer", [True, False])
def test_either_way_continues_a_checkpoint_of_the_other(head, writer):
    steps = [new_step(HEADS[head], rows) for rows in (writer, not writer)]
    train(steps[0], 0, 3)
    train(steps[1], 0, 2)  # something to replace, with decay that is not applied yet
    unpack(saved(steps[0]), steps[1].model.model, steps[1].optimizer)
    assert saved(steps[1]) == saved(steps[0])
    assert train(steps[1], 3, 5) == train(steps[0], 3, 5)
    assert saved(steps[1]) == saved(steps[0])


def test_evaluation_reads_all_rows_up_to_date():
    rows, whole = new_step(), new_step(rows=False)
    targets = torch.arange(12).reshape(1, 12) + 1  # most of them are not in the text
    for step in (rows, whole):
        train(step, 0, 3)
        step.model.model.eval()
    with torch.no_grad():
        losses = [step.model.model(targets - 1, targets, reduction="none").nll for step in (rows, whole)]
    assert torch.equal(*losses)
    for step in (rows, whole):
        step.model.model.train()
    assert train(rows, 3, 5) == train(whole, 3, 5)


def test_a_step_that_is_left_out_does_not_decay():
    step = new_step()
    before = embedding(step).table.clone()
    train(step, 0, 1)
    step.optimizer.found_inf = torch.ones(())
    for parameter in step.model.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    step.optimizer.step()
    module = embedding(step)
    module.update_table()
    expected = before[module.unused] * (1 - 0.01 * 0.3)
    assert torch.equal(module.table[module.unused], expected)
    assert torch.isfinite(module.table).all()
