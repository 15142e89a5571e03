"""`head=adaptive` is torch's module, with ignored targets, reductions and bf16 on top."""

import copy

import pytest
import torch

from grouped_lm.heads import IGNORE_INDEX, AdaptiveConfig, build_head
from grouped_lm.measure.memory import measure_head_peak_gib

D = 16


def head_and_batch(vocab_size: int = 103, cutoffs=(5, 20)):
    torch.manual_seed(0)
    counts = torch.randint(0, 50, (vocab_size,))
    head = build_head(AdaptiveConfig(cutoffs=list(cutoffs)), D, vocab_size, counts=counts).double()
    hidden = torch.randn(60, D, dtype=torch.float64, requires_grad=True)
    return head, hidden, torch.randint(0, vocab_size, (60,)), counts


def test_equals_torch_in_loss_and_gradients():
    head, hidden, targets, _ = head_and_batch()
    weights = torch.randn(60, dtype=torch.float64)
    ours = head.loss(hidden, targets, reduction="none").nll
    theirs = -head.adaptive(hidden, head.rank[targets]).output
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(head.loss(hidden, targets).nll, head.adaptive(hidden, head.rank[targets]).loss)
    inputs = [hidden, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_ignored_targets_leave_no_trace():
    head, hidden, targets, _ = head_and_batch()
    kept = targets.clone()
    kept[::3] = IGNORE_INDEX
    counted = kept != IGNORE_INDEX
    with_ignored = head.loss(hidden, kept).nll
    without = head.loss(hidden[counted], targets[counted]).nll
    torch.testing.assert_close(with_ignored, without)
    inputs = [hidden, *head.parameters()]
    for a, b in zip(torch.autograd.grad(with_ignored, inputs), torch.autograd.grad(without, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture(params=[1, 7, 256])
def chunk_rows(request, monkeypatch):
    monkeypatch.setattr("grouped_lm.heads.adaptive.default_chunk_rows", lambda _: request.param)
    return request.param


@pytest.mark.parametrize("cutoffs", [(5, 20), (90,), (1, 2, 3)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_in_chunks_it_is_the_same_loss_with_the_same_gradients(chunk_rows, reduction, cutoffs):
    head, hidden, targets, _ = head_and_batch(cutoffs=cutoffs)
    targets[::3] = IGNORE_INDEX
    inputs, found = [hidden, *head.parameters()], []
    for head.in_chunks in (False, True):
        loss = head.loss(hidden, targets, reduction=reduction)
        parts = loss.nll, loss.group_nll, loss.token_nll
        found.append([*parts, *torch.autograd.grad(1.7 * loss.nll, inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_in_chunks_bf16_errors_are_at_most_twice_those_of_the_slow_line(chunk_rows):
    exact, hidden, targets, _ = head_and_batch()
    narrow, found = copy.deepcopy(exact).float(), []
    for head, chunks, states in (
        (exact, False, hidden),
        (narrow, False, hidden.float()),
        (narrow, True, hidden.float()),
    ):
        head.in_chunks, states = chunks, states.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=head is narrow):
            loss = head.loss(states, targets).nll
        assert loss.dtype == (torch.float32 if head is narrow else torch.float64)
        found.append([loss, *torch.autograd.grad(loss, [states, *head.parameters()])])
    for truth, slow, ours in zip(*found, strict=True):
        assert (ours - truth).abs().mean() <= 2 * (slow - truth).abs().mean() + 1e-6


def test_in_chunks_no_logits_are_kept():
    torch.manual_seed(0)
    head, peaks = build_head(AdaptiveConfig(cutoffs=[500, 1_000]), D, 5_000), []
    for head.in_chunks in (False, True):
        peaks.append(measure_head_peak_gib(head, 4_096, D, 5_000, torch.device("cpu")) * 2**30)
    torchs, chunked = peaks
    assert torchs > 2 * 4_096 * 502 * 4  # bytes of the first softmax's logits and of their gradient
    assert chunked < torchs / 8


def test_ranks_follow_the_counts():
    head, _, _, counts = head_and_batch()
    assert counts[torch.argsort(head.rank)].diff().max() <= 0
    assert build_head(AdaptiveConfig(), D, 30).rank.tolist() == list(range(30))


@pytest.mark.parametrize(
    ("vocab_size", "expected"), [(50_257, [2_000, 10_000]), (10_000, [2_000]), (2_000, [1_999]), (2, [1])]
)
def test_cutoffs_are_clipped(vocab_size, expected):
    assert build_head(AdaptiveConfig(), 4, vocab_size).adaptive.cutoffs == [*expected, vocab_size]


def test_accuracies():
    head, hidden, targets, _ = head_and_batch()
    targets[::4] = IGNORE_INDEX
    counted, rank = targets != IGNORE_INDEX, head.rank[targets.clamp_min(0)]
    first = head.adaptive.head(hidden).argmax(-1)
    classes = torch.where(rank < 5, rank, torch.where(rank < 20, 5, 6))
    loss = head.loss(hidden, targets, reduction="none", accuracy=True)
    assert torch.equal(loss.group_correct, (first == classes) & counted)
    assert loss.token_correct[counted & (rank < 5)].all()
    inside = torch.where(
        rank < 20, 5 + head.adaptive.tail[0](hidden).argmax(-1), 20 + head.adaptive.tail[1](hidden).argmax(-1)
    )
    rare = counted & (rank >= 5)
    assert torch.equal(loss.token_correct[rare], (inside == rank)[rare])


def test_a_vocabulary_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2 tokens"):
        build_head(AdaptiveConfig(), D, 1)
