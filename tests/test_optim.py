"""The schedule's corners, and what is not decayed."""

import pytest
import torch

from grouped_lm.config import OptimConfig
from grouped_lm.heads import DenseConfig, FilmConfig, GroupedConfig, build_head
from grouped_lm.optim import build_optimizer, learning_rate, split_by_decay


def test_learning_rate_rises_then_falls_to_the_floor():
    config = OptimConfig(lr=2.0, warmup_steps=10, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[99] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_of_runs_shorter_than_their_warm_up():
    config = OptimConfig(lr=1.0, warmup_steps=50)
    assert [learning_rate(config, step, 2) for step in range(2)] == pytest.approx([0.02, 0.04])
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0), 0, 1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("config", "decayed"),
    [(GroupedConfig(), {"group.weight", "slot.weight"}), (FilmConfig(), {"group.weight", "slot.weight"})],
)
def test_scales_and_shifts_are_not_decayed(config, decayed):
    head = build_head(config, 8, 50)
    kept = {id(p) for p in split_by_decay(head)[0]}
    assert {name for name, p in head.named_parameters() if id(p) in kept} == decayed


def test_norms_and_biases_are_not_decayed_and_tied_weights_stand_once():
    embedding = torch.nn.Embedding(50, 8)
    model = torch.nn.ModuleDict({"wte": embedding, "norm": torch.nn.LayerNorm(8)})
    model["head"] = build_head(DenseConfig(), 8, 50, wte=embedding.weight)
    optimizer = build_optimizer(OptimConfig(weight_decay=0.3), model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]
