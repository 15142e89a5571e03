"""The chunked loss of the heads that share one layer, against their slow line."""

import pytest
import torch
from head_cases import batch_of, head_of

from grouped_lm.heads.losses import shared_nll
from grouped_lm.heads.losses.functional import scale_saved

BOTH = ["grouped", "film"]


def slow(head, hidden, targets):
    return head.loss(hidden, targets, reduction="none").nll.sum()


@pytest.mark.parametrize("chunk_rows", [1, 7, 100])
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("group_size", [1, 7, 103])
@pytest.mark.parametrize("ignored", [True, False])
def test_equals_the_slow_line(monkeypatch, name, group_size, chunk_rows, ignored):
    monkeypatch.setattr(shared_nll, "default_chunk_rows", lambda device: chunk_rows)
    head, (hidden, targets) = head_of(name, group_size=group_size), batch_of(103, 23)
    targets = targets if ignored else targets.clamp_min(0)
    leaves = [hidden, *head.parameters()]
    ours, theirs = head.loss(hidden, targets, reduction="sum"), slow(head, hidden, targets)
    torch.testing.assert_close(ours.nll, theirs)
    torch.testing.assert_close(ours.nll, ours.group_nll + ours.token_nll)
    found, wanted = (torch.autograd.grad(-2.5 * value, leaves) for value in (ours.nll, theirs))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", BOTH)
def test_gradients_may_be_asked_for_twice(name):
    head, (hidden, targets) = head_of(name), batch_of(103, 23)
    loss = head.loss(hidden, targets).nll
    first = torch.autograd.grad(3 * loss, hidden, retain_graph=True)
    second = torch.autograd.grad(3 * loss, hidden)
    torch.testing.assert_close(first, second)


def test_saved_gradients_are_overwritten_by_the_last_backward_alone():
    seen = []

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(torch.ones(3))
            return x.sum()

        @staticmethod
        def backward(ctx, scale):
            saved = ctx.saved_tensors
            (found,) = scale_saved(saved, scale)
            seen.append(found is saved[0])
            return found

    x = torch.zeros(3, requires_grad=True)
    loss = Loss.apply(x)
    torch.autograd.grad(2 * loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, x)[0], torch.full((3,), 2.0))
    assert seen == [False, True]


@pytest.mark.parametrize("name", BOTH)
def test_nothing_of_the_size_of_the_logits_is_kept(name):
    head = head_of(name, 10_000, 100)
    hidden, targets = batch_of(10_000, 640)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        head.loss(hidden, targets)
    numbers = {t.data_ptr(): t.numel() for t in kept}
    assert max(numbers.values()) <= head.n_group * head.group_size < 640 * 100


@pytest.mark.parametrize("name", BOTH)
def test_operator_is_well_formed(name):
    head, (hidden, targets) = head_of(name, dtype=torch.float32), batch_of(103, 23, dtype=torch.float32)
    layer, known = head.layer(), targets.clamp_min(0)
    none = torch.empty(0)
    inner, outer = layer.inner or (none, none), none if layer.outer is None else layer.outer
    layer = [layer.weight, layer.table, *inner, outer]
    where = head.groups_and_slots(known)
    weights = [head.group.weight, head.group.bias, *layer]
    weights = [w.detach().requires_grad_(w.numel() > 0) for w in weights]
    torch.library.opcheck(shared_nll._shared_nll, (hidden, *weights, *where, torch.float32, True))
