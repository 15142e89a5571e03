"""The fused softmax inside groups equals the slow line beside it, in values and gradients."""

import pytest
import torch
from torch import Tensor

from grouped_lm.config import GroupingConfig
from grouped_lm.heads import IGNORE_INDEX, ClassFullConfig, DenseConfig, Head, TwoLevelHead, build_head

D = 6
GROUPINGS = ["merge_rank", "frequency", "random"]


def random_head(config, vocab_size: int, grouping: str = "merge_rank", dtype=torch.float64) -> Head:
    torch.manual_seed(0)
    wte = torch.nn.Parameter(torch.randn(vocab_size, D, dtype=torch.float64))
    head = build_head(config, D, vocab_size, GroupingConfig(name=grouping), torch.arange(vocab_size) % 11, wte)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.to(dtype)


def states_and_targets(vocab_size: int, count: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, vocab_size, (count,), generator=generator)
    targets[::4] = IGNORE_INDEX
    hidden = torch.randn(count, D, dtype=torch.float64, generator=generator)
    return hidden.to(dtype).requires_grad_(), targets


def loss_and_gradients(head: Head, call, targets: Tensor, hidden: Tensor) -> list[Tensor]:
    """Of every token's loss under a random weight of its own: a gradient scaled as a whole would not pass."""
    found = call(head, hidden, targets, reduction="none", accuracy=True)
    weights = torch.randn(targets.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = [hidden, *head.parameters()]
    gradients = torch.autograd.grad((found.nll * weights).sum(), parameters)
    parts = [found.nll, found.group_nll, found.token_nll, found.group_correct, found.token_correct]
    return [*parts, *gradients]


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(("vocab_size", "group_size"), [(103, 7), (103, None), (9, 1), (5, 5), (2, 2), (1, 1)])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_class_full_equals_its_slow_line(vocab_size, group_size, grouping, count):
    head = random_head(ClassFullConfig(group_size=group_size), vocab_size, grouping)
    hidden, targets = states_and_targets(vocab_size, count)
    fused = loss_and_gradients(head, type(head).loss, targets, hidden)
    slow = loss_and_gradients(head, TwoLevelHead.loss, targets, hidden)
    for ours, theirs in zip(fused, slow, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_class_full_in_fp32_is_as_near_to_fp64_as_its_slow_line(grouping):
    exact, rough = (random_head(ClassFullConfig(), 1_003, grouping, dtype) for dtype in (torch.float64, torch.float32))
    slow = TwoLevelHead.loss
    hidden, targets = states_and_targets(1_003, 300)
    truth = loss_and_gradients(exact, slow, targets, hidden)
    hidden, _ = states_and_targets(1_003, 300, torch.float32)
    fused, eager = (loss_and_gradients(rough, call, targets, hidden) for call in (type(rough).loss, slow))
    for ours, theirs, exactly in zip(fused, eager, truth, strict=True):
        if ours.is_floating_point():
            error = (theirs - exactly).abs().max()
            assert (ours - exactly).abs().max() <= 2 * error + 1e-6


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_one_group_is_the_dense_softmax(grouping):
    wte = torch.nn.Parameter(torch.randn(31, D, dtype=torch.float64))
    counts = torch.arange(31) % 5
    dense = build_head(DenseConfig(), D, 31, wte=wte)
    one = build_head(ClassFullConfig(group_size=31), D, 31, GroupingConfig(name=grouping), counts, wte).double()
    hidden, targets = states_and_targets(31, 40)
    torch.testing.assert_close(one.loss(hidden, targets).nll, dense.loss(hidden, targets).nll)
    torch.testing.assert_close(one.log_prob(hidden), dense.log_prob(hidden))


@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_gradients_under_bf16_autocast(states):
    head = random_head(ClassFullConfig(), 103, "random", torch.float32)
    hidden, targets = states_and_targets(103, 200, torch.float32)
    exact = torch.autograd.grad(head.loss(hidden, targets).nll, [hidden, *head.parameters()])
    cast = hidden.detach().to(states).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(cast, targets).nll
    rough = torch.autograd.grad(loss, [cast, *head.parameters()])
    for ours, theirs in zip(rough, exact, strict=True):
        assert (ours - theirs).abs().max() <= 0.03 * theirs.abs().max()
    assert [g.dtype for g in rough] == [states, *(p.dtype for p in head.parameters())]


def test_a_loaded_grouping_is_followed():
    ours, theirs = (random_head(ClassFullConfig(group_size=7), 103, name) for name in ("merge_rank", "random"))
    ours.load_state_dict(theirs.state_dict())
    ours.after_load()
    hidden, targets = states_and_targets(103, 50)
    for loss in (type(ours).loss, TwoLevelHead.loss):
        torch.testing.assert_close(loss(ours, hidden, targets).nll, loss(theirs, hidden, targets).nll)


def test_nothing_of_the_size_of_the_logits_is_kept():
    head = random_head(ClassFullConfig(), 10_000)
    hidden, targets = states_and_targets(10_000, 64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        head.loss(hidden, targets)
    own = {p.data_ptr() for p in head.parameters()}
    assert sum(t.numel() for t in kept if t.data_ptr() not in own) < 64 * (head.n_group + head.group_size) * 1.2 + 5_000
