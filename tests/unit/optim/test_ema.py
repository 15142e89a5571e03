"""The average of the weights: its formula, and the swap around a validation."""

import pytest
import torch

from grouped_lm.config import AdamWConfig
from grouped_lm.optim import OPTIMIZERS, build_optimizer
from grouped_lm.optim.ema import EMA, averaged_weights, decay_at, update_average


def test_the_average_follows_its_formula_and_is_swapped_in():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(5, 3), "never": torch.nn.Linear(2, 2)}).double()
    optimizer = build_optimizer(AdamWConfig(lr=0.1), model)
    expected: dict[str, torch.Tensor] = {}
    for step in range(30):
        model["linear"](torch.randn(4, 5).double()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        update_average(optimizer, 0.9, step)
        for name, weight in model["linear"].named_parameters():
            decay = min(0.9, (1 + step) / (10 + step))
            old = expected.get(name, weight.detach())
            expected[name] = decay * old + (1 - decay) * weight.detach()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with averaged_weights(optimizer):
        for name, average in expected.items():
            torch.testing.assert_close(model["linear"].get_parameter(name).detach(), average)
            assert not torch.equal(average, before[f"linear.{name}"])
        assert torch.equal(model["never"].weight, before["never.weight"])
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not any(EMA in optimizer.state[weight] for weight in model["never"].parameters())


def test_an_error_inside_puts_the_weights_back():
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(AdamWConfig(), model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    update_average(optimizer, 0.9, 0)
    optimizer.step()
    before = model.weight.detach().clone()
    with pytest.raises(KeyError), averaged_weights(optimizer):
        raise KeyError
    assert torch.equal(model.weight, before)


def test_the_decay_grows_to_its_limit():
    assert [decay_at(0.9, step) for step in (0, 10, 1000)] == [0.1, 0.55, 0.9]
    assert all(schema().ema == 0 for schema, _ in OPTIMIZERS.values())
