"""`optim=muon`: it trains, a resumed run has the same bits, and a step that is not finite changes nothing."""

import copy

import pytest
import torch

from grouped_lm.config import AdamWConfig, Config, ModelConfig, TokenizerConfig
from grouped_lm.distributed.parallel import ParallelModel
from grouped_lm.distributed.process_group import SINGLE_PROCESS
from grouped_lm.errors import ConfigError
from grouped_lm.heads import GroupedConfig
from grouped_lm.measure.live_bytes import KINDS
from grouped_lm.models.lm import build_lm
from grouped_lm.optim import build_optimizer, learning_rate, parse_optim_config, set_learning_rate
from grouped_lm.optim.muon import MuonConfig
from grouped_lm.optim.training_step import TrainingStep
from grouped_lm.plan.fake_step import fake_step
from grouped_lm.runs.train_state import pack, unpack

CPU = torch.device("cpu")
CONFIG = Config(
    model=ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=12),
    head=GroupedConfig(group_size=20),
    tokenizer=TokenizerConfig(name="bytes"),
    optim=MuonConfig(lr=0.01, warmup_steps=2, matrix_lr_ratio=0.5),
)


def new_step(config: Config = CONFIG) -> TrainingStep:
    torch.manual_seed(0)
    model = build_lm(config).train()
    return TrainingStep(config, ParallelModel(model, SINGLE_PROCESS, model), build_optimizer(config.optim, model), CPU)


def train(step: TrainingStep, first: int, last: int) -> list[float]:
    """Run steps on one batch that is always the same, and return the losses before each."""
    ids = torch.randint(0, 257, (4, 13), generator=torch.Generator().manual_seed(1))
    for number in range(first, last):
        lr = learning_rate(step.config.optim, number, 10)
        set_learning_rate(step.optimizer, lr)
        step.update([step.forward_backward(ids[:, :-1], ids[:, 1:], is_last=True)], number, lr)
    return [metrics.losses["train/loss"] for metrics in step.metrics.read()]


def weights(step: TrainingStep) -> dict[str, torch.Tensor]:
    return copy.deepcopy(step.model.model.state_dict())


def test_muon_lowers_the_loss_and_updates_the_matrices_of_the_blocks():
    step = new_step()
    before = weights(step)
    losses = train(step, 0, 10)
    assert losses[-1] < 0.7 * losses[0]
    blocks = {name: p for name, p in step.model.model.named_parameters() if ".h." in name and p.ndim == 2}
    assert set(step.optimizer.param_groups[-1]["params"]) == set(blocks.values())
    for name, parameter in step.model.model.named_parameters():
        keys = {"momentum_buffer"} if name in blocks else {"step", "exp_avg", "exp_avg_sq"}
        assert set(step.optimizer.state[parameter]) == keys, name
        assert not torch.equal(parameter, before[name]), name


def test_an_update_is_that_of_torchs_own_optimizers():
    step, other = new_step(), new_step()
    matrices = step.optimizer.param_groups[-1]["params"]
    pairs = dict(zip(step.model.model.parameters(), other.model.model.parameters(), strict=True))
    muon = torch.optim.Muon([pairs[p] for p in matrices], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for number in range(3):
        lr = learning_rate(CONFIG.optim, number, 10)
        set_learning_rate(step.optimizer, lr)
        muon.param_groups[0]["lr"] = 0.5 * lr
        for own, its in pairs.items():
            own.grad = torch.randn(own.shape, generator=torch.Generator().manual_seed(number))
            its.grad = own.grad.clone()
        step.optimizer.step()
        muon.step()
    for matrix in matrices:
        assert torch.equal(matrix, pairs[matrix])


def test_a_resumed_run_has_the_same_bits():
    whole, first, second = new_step(), new_step(), new_step()
    losses = train(whole, 0, 8)
    before = train(first, 0, 4)
    files = pack(first.model.model, first.optimizer, {"progress": {"step": 4}})
    torch.manual_seed(5)
    unpack(files, second.model.model, second.optimizer)
    assert before + train(second, 4, 8) == losses
    assert pack(second.model.model, second.optimizer, {}) == pack(whole.model.model, whole.optimizer, {})


def test_one_state_dict_holds_both_optimizers():
    whole, first, second = new_step(), new_step(), new_step()
    train(whole, 0, 6)
    train(first, 0, 3)
    second.model.model.load_state_dict(first.model.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    train(second, 3, 6)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())


@pytest.mark.parametrize("number", [0, 3])
def test_a_step_that_is_not_finite_changes_nothing(number):
    step = new_step()
    train(step, 0, number)
    for parameter in step.model.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    before = weights(step)
    state = {p: {k: v.clone() for k, v in s.items()} for p, s in step.optimizer.state.items()}
    loss = step.forward_backward(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64), True)
    step.update([loss], number, 0.01)
    assert not step.metrics.read()[0].finite
    assert all(torch.equal(value, before[name]) for name, value in weights(step).items())
    for parameter, kept in state.items():
        assert all(torch.equal(value, kept[key]) for key, value in step.optimizer.state[parameter].items())


def test_the_plan_counts_one_buffer_for_a_matrix_and_two_averages_for_the_rest():
    adamw = Config(model=CONFIG.model, head=CONFIG.head, tokenizer=CONFIG.tokenizer, optim=AdamWConfig())
    matrices = new_step().optimizer.param_groups[-1]["params"]
    at = KINDS.index("optimizer")
    bytes_of = [int(fake_step(config).live[:, at].max()) for config in (adamw, CONFIG)]
    saved = sum(4 * matrix.numel() + 4 for matrix in matrices)  # an average, and the step counter
    assert bytes_of[0] - bytes_of[1] == saved


def test_settings_of_another_optimizer_are_refused():
    assert parse_optim_config({"name": "muon", "momentum": 0.9}).momentum == 0.9
    for values in ({"name": "muon", "sparse_rows": True}, {"name": "adamw", "momentum": 0.9}, {"name": "sgd"}):
        with pytest.raises(ConfigError, match="optim"):
            parse_optim_config(values)
