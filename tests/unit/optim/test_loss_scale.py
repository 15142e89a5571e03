"""`train.dtype=float16` on a CPU: the loss is scaled, a step that overflows is left out, the update is that of fp32."""

import pytest
import torch

from grouped_lm.config import Config, ModelConfig, TokenizerConfig, TrainConfig
from grouped_lm.distributed.parallel import ParallelModel
from grouped_lm.distributed.process_group import SINGLE_PROCESS
from grouped_lm.heads import HEADS
from grouped_lm.models.lm import build_lm
from grouped_lm.optim import OPTIMIZERS, build_optimizer, parse_optim_config, set_learning_rate
from grouped_lm.optim.training_step import StepMetrics, TrainingStep

CPU = torch.device("cpu")


def new_step(dtype: str = "float16", head: str = "grouped", accum: int = 1, **optim) -> TrainingStep:
    config = Config(
        model=ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=12),
        head=HEADS[head].schema(),
        tokenizer=TokenizerConfig(name="bytes"),
        optim=parse_optim_config({"name": "adamw", "lr": 0.01} | optim),
        train=TrainConfig(dtype=dtype, grad_accum_steps=accum),
    )
    torch.manual_seed(0)
    model = build_lm(config).train()
    return TrainingStep(config, ParallelModel(model, SINGLE_PROCESS, model), build_optimizer(config.optim, model), CPU)


def train(step: TrainingStep, n_steps: int) -> list[StepMetrics]:
    """Run steps on one batch that is always the same."""
    ids = torch.randint(0, 257, (4, 13), generator=torch.Generator().manual_seed(1))
    accum = step.config.train.grad_accum_steps
    torch.manual_seed(1)  # the sampled softmax draws tokens
    set_learning_rate(step.optimizer, 0.01)
    for number in range(n_steps):
        losses = [step.forward_backward(ids[:, :-1], ids[:, 1:], is_last=i == accum - 1) for i in range(accum)]
        step.update(losses, number, 0.01)
    return step.metrics.read()


def weights(step: TrainingStep) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in step.model.model.parameters()]


@pytest.mark.parametrize("accum", [1, 3])
@pytest.mark.parametrize("head", HEADS)
def test_losses_and_gradient_norms_are_those_of_fp32(head, accum):
    half, single = (train(step, 4) for step in (scaled_by(2.0**12, head, accum), new_step("float32", head, accum)))
    for own, exact in zip(half, single, strict=True):
        assert own.loss_scale == 2.0**12
        assert exact.loss_scale is None
        assert own.losses["train/loss"] == pytest.approx(exact.losses["train/loss"], rel=5e-3)
    assert half[0].grad_norm == pytest.approx(single[0].grad_norm, rel=2e-3)  # AdamW enlarges small differences


def scaled_by(scale: float, head: str = "grouped", accum: int = 1, **optim) -> TrainingStep:
    step = new_step("float16", head, accum, **optim)
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": scale})
    return step


@pytest.mark.parametrize("optim", [*({"name": name} for name in OPTIMIZERS), {"sparse_rows": True}], ids=str)
def test_a_step_that_overflows_changes_nothing_but_the_scale(optim):
    step = scaled_by(2.0**40, **optim)
    before = weights(step)
    metrics = train(step, 2)
    assert [(m.finite, m.overflowed, m.loss_scale) for m in metrics] == [(False, True, 2.0**k) for k in (40, 39)]
    assert all(map(torch.equal, weights(step), before))
    assert not any(state["step"] for state in step.optimizer.state.values() if "step" in state)
    fresh = scaled_by(2.0**10, **optim)  # the steps left out have left nothing behind
    step.scaler.load_state_dict(fresh.scaler.state_dict())
    assert [m.losses for m in train(step, 3)] == [m.losses for m in train(fresh, 3)]
    assert all(map(torch.equal, weights(step), weights(fresh)))
    assert not all(map(torch.equal, weights(step), before))


def test_the_scale_grows_after_steps_without_overflow():
    step = new_step()
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 64.0, "growth_interval": 3})
    assert [metrics.loss_scale for metrics in train(step, 7)] == [64, 64, 64, 128, 128, 128, 256]


def test_the_gradient_is_clipped_after_it_is_unscaled():
    step = scaled_by(2.0**10, "film", grad_clip=0.5)
    norms: list[float] = []
    update = step.optimizer.step
    step.optimizer.step = lambda: (
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in step.model.model.parameters()]))) or update()
    )
    (metrics,) = train(step, 1)
    assert metrics.grad_norm > 0.5
    assert norms == [pytest.approx(0.5, rel=1e-5)]
