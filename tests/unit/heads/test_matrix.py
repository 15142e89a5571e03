"""What every head in HEADS must show, in fp64 and at odd sizes; a new head is in here as soon as it is listed."""

import copy

import pytest
import torch
from head_cases import D, batch_of, head_of
from torch import Tensor

from grouped_lm.heads import HEADS, IGNORE_INDEX, ClassFullConfig, DenseConfig, Head, TrimConfig, build_head
from grouped_lm.heads.losses.functional import HeadLoss

SIZES = [(103, 7), (103, None), (9, 1), (5, 5), (2, 2)]
"""V and S: V not divisible by S; S = round(sqrt V); S = 1; S = V, one group; next to nothing."""


def plain_loss(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """The slow line that every head's loss equals: -log_prob[target], zero where ignored, under plain autograd."""
    picked = head.log_prob(hidden).gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(targets == IGNORE_INDEX, 0.0, -picked)


def with_gradients(head: Head, nll: Tensor, hidden: Tensor) -> list[Tensor]:
    """Per-token losses and their gradients under weights of their own: scaled as a whole they would not pass."""
    weights = torch.randn(nll.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(nll.dtype)
    inputs = [hidden, *head.parameters()]
    gradients = torch.autograd.grad((nll * weights).sum(), inputs, allow_unused=True)
    return [nll, *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))]


@pytest.mark.parametrize(("vocab_size", "group_size"), SIZES)
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_are_those_of_a_distribution(name, vocab_size, group_size):
    head = head_of(name, vocab_size, group_size)
    hidden, targets = batch_of(vocab_size, 3, 5)
    assert head.log_prob(hidden).exp().sum(-1).sub(1).abs().max() < 1e-6
    slow = with_gradients(head, plain_loss(head, hidden, targets), hidden)
    fast = with_gradients(head, head.loss(hidden, targets, reduction="none").nll, hidden)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs)
    counted = (targets != IGNORE_INDEX).sum()
    for reduction, expected in (("sum", slow[0].sum()), ("mean", slow[0].sum() / counted)):
        nll = head.loss(hidden, targets, reduction=reduction).nll
        torch.testing.assert_close(nll, expected)
        plain = plain_loss(head, hidden, targets).sum() / (1 if reduction == "sum" else counted)
        gradients = (torch.autograd.grad(1.7 * loss, hidden)[0] for loss in (nll, plain))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", HEADS)
def test_gradcheck(name):
    head, weights = head_of(name, 23), torch.randn(2, 3, dtype=torch.float64)
    hidden, targets = batch_of(23, 2, 3)
    names, parameters = zip(*head.named_parameters(), strict=True)

    def loss(states: Tensor, *values: Tensor) -> Tensor:
        own = dict(zip(names, values, strict=True))
        nll = torch.func.functional_call(head, own, (states, targets), {"reduction": "none"}).nll
        return (nll * weights).sum()

    assert torch.autograd.gradcheck(loss, [hidden, *(p.detach().clone().requires_grad_() for p in parameters)])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", HEADS)
def test_nothing_counted_is_zero_not_nan(name, reduction):
    for head in (head_of(name), head_of(name).train()):
        hidden, targets = batch_of(103, 2, 3)
        loss = head.loss(hidden, torch.full_like(targets, IGNORE_INDEX), reduction=reduction, accuracy=True)
        loss.nll.sum().backward()
        assert loss.nll.abs().sum() == 0
        assert hidden.grad.abs().max() == 0


@pytest.mark.parametrize("name", HEADS)
def test_compiled_equals_eager_with_ignored_rows(name):
    torch.compiler.reset()
    head = head_of(name, dtype=torch.float32)
    hidden, targets = batch_of(103, 3, 5, dtype=torch.float32)
    eager = with_gradients(head, head(hidden, targets, reduction="none").nll, hidden)
    compiled = torch.compile(head, backend="aot_eager")
    found = with_gradients(head, compiled(hidden, targets, reduction="none").nll, hidden)
    for ours, theirs in zip(found, eager, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", HEADS)
def test_compiled_by_inductor_equals_eager(name):
    torch.compiler.reset()
    head = head_of(name, dtype=torch.float32)
    hidden, targets = batch_of(103, 3, 5, dtype=torch.float32)
    eager = with_gradients(head, head(hidden, targets).nll, hidden)
    found = with_gradients(head, torch.compile(head)(hidden, targets).nll, hidden)
    for ours, theirs in zip(found, eager, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_bf16_errors_are_at_most_twice_those_of_plain_torch(name):
    """Against fp64, of fused loss and of the slow line under the same autocast; in the mean over tokens and entries."""
    exact = head_of(name, width=64)
    hidden, targets = batch_of(103, 40, width=64)
    hidden = (hidden.detach() / 8).requires_grad_()  # logits of unit size
    truth = with_gradients(exact, plain_loss(exact, hidden, targets), hidden)
    head, states = copy.deepcopy(exact).float(), hidden.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = head.loss(states, targets, reduction="none").nll
        if name == "adaptive":  # its log_prob turns autocast off
            head.log_prob = lambda x: head.adaptive.log_prob(x)[:, head.rank]
        slow = plain_loss(head, states, targets)
    assert fused.dtype == torch.float32
    for ours, torchs, exactly in zip(
        with_gradients(head, fused, states), with_gradients(head, slow, states), truth, strict=True
    ):
        if exactly.numel():
            error = (torchs - exactly).abs().mean()
            assert (ours - exactly).abs().mean() <= 2 * error + 1e-6


@pytest.mark.parametrize("bias", [False, True])
def test_trim_with_every_token_seen_is_dense(bias):
    torch.manual_seed(0)
    wte, ones = torch.nn.Parameter(torch.randn(31, D, dtype=torch.float64)), torch.ones(31)
    dense, trim = (
        build_head(kind(bias=bias), D, 31, counts=ones, wte=wte).double() for kind in (DenseConfig, TrimConfig)
    )
    hidden, targets = batch_of(31, 40)
    found = [(head.loss(hidden, targets, reduction="none").nll, head.log_prob(hidden)) for head in (trim, dense)]
    torch.testing.assert_close(found[0], found[1])
    grads = [torch.autograd.grad(nll.sum(), [hidden, wte]) for nll, _ in found]
    torch.testing.assert_close(*grads)


def test_class_full_with_one_group_has_dense_gradients():
    torch.manual_seed(0)
    wte = torch.nn.Parameter(torch.randn(31, D, dtype=torch.float64))
    dense = build_head(DenseConfig(bias=True), D, 31, wte=wte).double()
    one = build_head(ClassFullConfig(group_size=31), D, 31, wte=wte).double()
    hidden, targets = batch_of(31, 40)
    losses = [head.loss(hidden, targets).nll for head in (one, dense)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, [hidden, wte]) for loss in losses))


def test_unseen_tokens_share_their_class_evenly():
    head = head_of("trim")  # 0, 11, ..., 99 are unseen
    log_prob = head.log_prob(batch_of(103, 4)[0])
    unseen = torch.arange(0, 103, 11)
    assert head.n_rest == 10
    assert (log_prob[:, unseen] == log_prob[:, :1]).all()
    assert (log_prob[:, 1] != log_prob[:, 2]).all()
    assert [p.shape for p in head_of("trim", tied=False).parameters()] == [(93, D), (1, D)]


@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 2], [1, 1, 1], [0]])
def test_trim_at_its_borders(counts):
    head = build_head(TrimConfig(tied=False), D, len(counts), counts=torch.tensor(counts)).double()
    hidden, _ = batch_of(len(counts), 4)
    assert head.log_prob(hidden).exp().sum(-1).sub(1).abs().max() < 1e-12
    every = torch.arange(len(counts)).expand(4, -1).contiguous()
    states = hidden.unsqueeze(1).expand(-1, len(counts), -1)
    torch.testing.assert_close(head.loss(states, every, reduction="none").nll, -head.log_prob(hidden))


@pytest.mark.parametrize("proposal", ["log_uniform", "frequency"])
def test_sampled_loss_and_gradient_are_the_exact_ones_in_the_mean(proposal):
    head = head_of("sampled", samples=20_000, proposal=proposal, bias=True)
    hidden, targets = batch_of(103, 30)
    exact = with_gradients(head, head.loss(hidden, targets, reduction="none").nll, hidden)
    rough = with_gradients(head, head.train().loss(hidden, targets, reduction="none").nll, hidden)
    for ours, theirs in zip(rough, exact, strict=True):
        assert (ours - theirs).abs().mean() < 0.05 * theirs.abs().mean()
    few = head_of("sampled", samples=5, proposal=proposal, bias=True).train()
    partition = [(few.loss(hidden, targets, reduction="none").nll - exact[0]).exp() for _ in range(4_000)]
    torch.testing.assert_close(torch.stack(partition).mean(0), torch.ones(30).double(), atol=0.25, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 256])
def test_sampled_sum_equals_the_line_per_token(rows, bias, monkeypatch):
    monkeypatch.setattr("grouped_lm.heads.sampled.default_chunk_rows", lambda _: rows)
    head = head_of("sampled", samples=40, bias=bias).train()
    hidden, targets = batch_of(103, 5, 6)
    drawn = head.draw()
    assert drawn.unique().numel() < drawn.numel()  # and some of them are targets
    assert torch.isin(targets, drawn).any()
    flat = hidden.flatten(0, 1), targets.flatten(), drawn
    slow = with_gradients(head, 3 * head.sampled_nll(*flat).sum(), hidden)
    fast = with_gradients(head, 3 * head.sampled_sum(*flat), hidden)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    for reduction in ("sum", "mean"):
        torch.manual_seed(0)
        whole = head.loss(hidden, targets, reduction=reduction).nll
        torch.manual_seed(0)
        per_token = head.loss(hidden, targets, reduction="none").nll
        count = 1 if reduction == "sum" else (targets >= 0).sum()
        torch.testing.assert_close(whole, per_token.sum() / count)
    ignored = torch.full_like(targets, IGNORE_INDEX)
    assert head.loss(hidden, ignored).nll == 0
    assert all(g.abs().max() == 0 for g in with_gradients(head, head.loss(hidden, ignored).nll, hidden)[1:])


@pytest.mark.parametrize("autocast", [False, True])
def test_sampled_sum_is_as_near_to_fp64_as_the_line_per_token(autocast):
    head = head_of("sampled", samples=40, bias=True, dtype=torch.float32, width=24).train()
    hidden, targets = batch_of(103, 30, dtype=torch.float32, width=24)
    drawn = head.draw()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = [
            with_gradients(head, loss, hidden)
            for loss in (head.sampled_sum(hidden, targets, drawn), head.sampled_nll(hidden, targets, drawn).sum())
        ]
    exact = hidden.detach().double().requires_grad_()
    truth = with_gradients(head.double(), head.double().sampled_nll(exact, targets, drawn).sum(), exact)
    for ours, plain, true in zip(*found, truth, strict=True):
        assert (ours - true).abs().max() <= 2 * (plain - true).abs().max() + 1e-6 * true.abs().max() + 1e-6


@pytest.mark.parametrize("proposal", ["log_uniform", "frequency"])
def test_draws_follow_their_proposal(proposal):
    head = head_of("sampled", 11, samples=200_000, proposal=proposal)
    assert head.log_q.exp().sum() == pytest.approx(1)
    share = torch.bincount(head.draw(), minlength=11) / 200_000
    assert (share - head.log_q.exp()).abs().max() < 0.005
    if proposal == "frequency":
        torch.testing.assert_close(head.log_q.exp(), (torch.arange(11) + 1).double() / 66, atol=1e-6, rtol=0)
    else:
        assert head.log_q.argsort(descending=True).tolist() == list(range(10, -1, -1))  # counts are id % 11


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_draws_of_a_head_in_low_precision_follow_their_proposal(dtype):
    head = head_of("sampled", 3_000, samples=100_000).to(dtype)
    plain = head_of("sampled", 3_000, samples=100_000)
    assert torch.equal(head.log_q, plain.log_q)
    assert torch.equal(head.cumulative, plain.cumulative)
    assert len(head.draw().unique()) > 2_900


def test_no_head_but_dense_keeps_logits_of_the_whole_vocabulary():
    for name in HEADS:
        if name == "dense":
            continue
        head = head_of(name, 4_001, 63, cutoffs=[1_000, 2_000]).train()
        hidden, targets = batch_of(4_001, 600)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            loss: HeadLoss = head.loss(hidden, targets)
        assert loss.nll.isfinite()
        assert max(t.numel() for t in kept) < 600 * 4_001 / 2, name
