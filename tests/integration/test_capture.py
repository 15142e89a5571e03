"""A step recorded as a graph has the losses and weights of a plain one to the bit, for every head.

The graphs are those of `recorded_graphs`: a CPU that records and replays under the rules of a GPU.
"""

import pytest
import recorded_graphs
import torch
from head_cases import plain_shortlist

from grouped_lm.config import Config, GroupingConfig, ModelConfig, TokenizerConfig, TrainConfig
from grouped_lm.distributed.parallel import ParallelModel
from grouped_lm.distributed.process_group import SINGLE_PROCESS
from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, class_full, shortlist
from grouped_lm.heads.losses import functional
from grouped_lm.models.lm import build_lm
from grouped_lm.optim import build_optimizer, parse_optim_config, set_learning_rate, used_rows
from grouped_lm.optim.training_step import TrainingStep
from grouped_lm.optim.used_rows import UsedRows, leave_out_unused_rows
from grouped_lm.train import capture
from grouped_lm.train.capture import CapturedStep

CPU = torch.device("cpu")
V = 257
OWN = {
    "shortlist": {"shortlist_size": 50, "group_size": 20},
    "adaptive": {"cutoffs": [50, 120]},
    "sampled": {"samples": 64},
    "low_rank": {"rank": 4},
    "dense": {"chunk_rows": 8},
}
STEPS = {
    **{name: kind.schema(**OWN.get(name, {})) for name, kind in HEADS.items()},
    "reserve": HEADS["dense"].schema(reserve=True),
    "adaptive with reserve": HEADS["adaptive"].schema(cutoffs=[50, 120], reserve=True),
    "own shortlist": plain_shortlist(shortlist_size=50, directions=4, own_shortlist=True, start="counts"),
    "scaled": plain_shortlist(shortlist_size=50, group_size=20, inner_scale=True, second_order=True),
}
COUNTS = (torch.arange(V) - 40).clamp_min(0).numpy()


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch):
    """Record on the CPU, and take the paths of a GPU, which look at no number."""
    monkeypatch.setattr(capture, "cuda_of", lambda device: recorded_graphs)
    monkeypatch.setattr(functional, "may_look", lambda values: False)
    for head in (shortlist, class_full):
        monkeypatch.setattr(head, "at_once", lambda *_: False)
    monkeypatch.setattr(functional, "_static_sizes", True)


def new_step(head="shortlist", dtype="float32", rows=False, **optim) -> TrainingStep:
    config = Config(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=12, dropout=0.1),
        head=STEPS[head],
        tokenizer=TokenizerConfig(name="bytes"),
        grouping=GroupingConfig(name="frequency"),
        optim=parse_optim_config({"name": "adamw", "weight_decay": 0.3, "grad_clip": 0.5} | optim),
        train=TrainConfig(dtype=dtype, grad_accum_steps=2, cuda_graphs=True),
    )
    torch.manual_seed(0)
    model = build_lm(config, lambda: COUNTS).train()
    if rows:
        leave_out_unused_rows(config, model, lambda: COUNTS)
    step = TrainingStep(config, ParallelModel(model, SINGLE_PROCESS, model), build_optimizer(config.optim, model), CPU)
    if dtype == "float16":
        step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 2.0**15, "growth_interval": 2})
    return step


def train(step: TrainingStep, maker, n_steps: int = 7, poisoned: int = -1):
    """Make steps with other text and another learning rate in each; return metrics and all that was trained."""
    torch.manual_seed(1)  # for dropout and the sampled softmax
    texts = torch.Generator().manual_seed(2)
    for number in range(n_steps):
        set_learning_rate(step.optimizer, lr := 0.01 / (1 + number))
        ids = [torch.randint(41, V, (3, 13), generator=texts) for _ in range(2)]
        if number == poisoned:
            step.model.model.body.wpe.weight.data[0, 0] = torch.inf
        maker.make([(some[:, :-1], some[:, 1:]) for some in ids], number, lr)
        if number == poisoned:
            step.model.model.body.wpe.weight.data[0, 0] = 0.5
    weights = {name: value.clone() for name, value in step.model.model.state_dict().items()}
    states = {f"{i} {key}": v for i, s in enumerate(step.optimizer.state.values()) for key, v in s.items()}
    return step.metrics.read(), weights | states | {"random": torch.get_rng_state()}


def assert_same(captured, plain):
    assert repr(captured[0]) == repr(plain[0])  # NaN is equal too
    assert captured[1].keys() == plain[1].keys()
    for name, value in captured[1].items():
        assert torch.equal(value, plain[1][name]), name


def compare(poisoned: int = -1, **settings):
    one, other = new_step(**settings), new_step(**settings)
    before = recorded_graphs.CUDAGraph.replays
    captured, plain = train(one, CapturedStep(one), poisoned=poisoned), train(other, other, poisoned=poisoned)
    assert recorded_graphs.CUDAGraph.replays - before == 7 - capture.PLAIN_STEPS
    assert_same(captured, plain)
    return captured[0]


@pytest.mark.parametrize("head", STEPS)
def test_captured_steps_are_plain_steps_to_the_bit(head):
    metrics = compare(head=head)
    assert metrics[0].grad_norm > 0.5  # it is clipped
    assert len({m.losses["train/loss"] for m in metrics}) == 7


@pytest.mark.parametrize("head", ["shortlist", "dense"])
def test_with_loss_scaling_the_scale_falls_and_rises_inside_the_graph(head):
    metrics = compare(head=head, dtype="float16")
    assert len({m.loss_scale for m in metrics}) > 2


def test_a_step_that_is_not_finite_is_left_out_by_the_graph():
    metrics = compare(poisoned=5)
    assert [m.finite for m in metrics] == [True] * 5 + [False] + [True]


def test_an_average_of_the_weights_has_its_own_factor_in_each_step():
    compare(ema=0.9)


def test_rows_that_are_left_out_decay_in_each_step(monkeypatch):
    monkeypatch.setattr(used_rows, "LEAST_UNUSED", 1)
    monkeypatch.setattr(used_rows, "LARGEST_SHARE", 1.0)
    assert isinstance(new_step(rows=True).model.model.body.wte, UsedRows)
    compare(rows=True)


def test_after_a_rollback_the_new_tensors_are_recorded():
    step, other = new_step(), new_step()
    maker = CapturedStep(step)
    for trained, by in ((step, maker), (other, other)):
        train(trained, by)
        for parameter, state in trained.optimizer.state.items():
            trained.optimizer.state[parameter] = {key: value.clone() for key, value in state.items()}
    maker.forget()
    assert_same(train(step, maker), train(other, other))


def test_static_sizes_change_a_loss_by_rounding_alone():
    for head in ("adaptive", "reserve", "adaptive with reserve"):
        step = new_step(head)
        static, _ = train(step, step)
        functional.set_static_sizes(False)
        step = new_step(head)
        plain, _ = train(step, step)
        functional.set_static_sizes(True)
        assert [m.losses["train/loss"] for m in static] == pytest.approx(
            [m.losses["train/loss"] for m in plain], rel=1e-5
        )


@pytest.mark.parametrize("word", ["item", "nonzero", "tensor"])
def test_what_no_graph_can_repeat_is_noticed(word, monkeypatch):
    step = new_step()
    maker, losses = CapturedStep(step), step.losses
    reads = {"item": lambda t: t.item(), "nonzero": torch.nonzero, "tensor": lambda t: torch.tensor([1.0])}

    def reading(batches):
        found = losses(batches)
        reads[word](found[0].nll)
        return found

    monkeypatch.setattr(step, "losses", reading)
    with pytest.raises(ConfigError, match=r"cannot record a step of head=shortlist: aten\.\w+.*; leave it out"):
        train(step, maker)


def test_other_sizes_are_refused():
    step = new_step()
    maker = CapturedStep(step)
    train(step, maker)
    ids = torch.zeros(2, 12, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"recorded micro-batches of \(3, 12\), got \(2, 12\)"):
        maker.make([(ids, ids)] * 2, 7, 0.01)


@pytest.mark.parametrize(
    ("optim", "words"),
    [
        ({"name": "muon"}, r"needs optim=adamw with optim\.sparse_rows=false, got optim=muon"),
        ({"sparse_rows": True}, r"got optim\.sparse_rows=true"),
    ],
)
def test_an_update_that_needs_the_host_is_refused(optim, words):
    with pytest.raises(ConfigError, match=words):
        CapturedStep(new_step(**optim))


def test_a_cpu_is_refused(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"train\.cuda_graphs=true needs a GPU, got train\.device=auto, which is cpu"):
        CapturedStep(new_step())
