"""The loss from the rows that a text's tokens have equals the one over the whole table, in values and gradients."""

import pytest
import torch
from head_cases import plain_shortlist
from torch import Tensor

from grouped_lm.config import GroupingConfig
from grouped_lm.heads import IGNORE_INDEX, build_head, shortlist
from grouped_lm.heads.losses import two_steps
from grouped_lm.heads.shortlist import ShortlistHead

D, V = 6, 213
COUNTS = torch.where(torch.arange(V) % 3 == 0, torch.arange(V) % 17 + 1, 0)


def head_of(dtype=torch.float64, **options) -> ShortlistHead:
    """Return a head whose text has every third token, with random weights."""
    torch.manual_seed(0)
    wte = torch.nn.Parameter(torch.randn(V, D, dtype=torch.float64))
    values = {"shortlist_size": 10, "group_size": 7, "directions": 0, "shared_rows": 1_000, "reserve": True} | options
    grouping = GroupingConfig(name="frequency")
    head = build_head(plain_shortlist(**values), D, V, grouping, COUNTS, wte)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.to(dtype)


def batch_of(count: int, rare: bool, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    seen = COUNTS.nonzero().squeeze(1)
    targets = seen[torch.randint(0, len(seen), (count,), generator=generator)]
    if rare:
        targets[1::5] += 1  # never seen
    targets[::4] = IGNORE_INDEX
    hidden = torch.randn(count, D, dtype=torch.float64, generator=generator)
    return hidden.to(dtype).requires_grad_(), targets


def found_by(head: ShortlistHead, hidden: Tensor, targets: Tensor, reduction: str) -> list[Tensor]:
    loss = head.loss(hidden, targets, reduction)
    gradients = torch.autograd.grad(2.5 * loss.nll, [hidden, *head.parameters()])
    values = [part.detach() for part in (loss.nll, loss.group_nll, loss.token_nll) if part is not None]
    return [*values, *(g.to_dense() if g.is_sparse else g for g in gradients)]


def both_ways(monkeypatch, head: ShortlistHead, *batch) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the rows give, and what the slow line does."""
    assert head.table_rows is not None
    ours = found_by(head, *batch)
    with monkeypatch.context() as patch:
        patch.setattr(shortlist, "at_once", lambda *_: False)
        return ours, found_by(head, *batch)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("count", [1, 2, 50, 700])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False},
        {"shortlist_size": 0},
        {"shortlist_size": 70},
        {"group_size": 1},
        {"group_size": 25, "shared_rows": 20},
    ],
)
def test_rows_give_what_the_whole_table_gives(monkeypatch, options, count, rare, reduction):
    batch = *batch_of(count, rare), reduction
    for ours, theirs in zip(*both_ways(monkeypatch, head_of(**options), *batch), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("pairs", "chunk_rows"), [(1, 1), (20, 5), (37, 16)])
def test_however_the_work_is_cut(monkeypatch, pairs, chunk_rows):
    monkeypatch.setattr(two_steps, "CHUNK_PAIRS", pairs * D)
    monkeypatch.setattr(two_steps, "CHUNK_NUMBERS", pairs)
    monkeypatch.setattr(two_steps, "DEFAULT_CHUNK_ROWS", chunk_rows)
    for ours, theirs in zip(*both_ways(monkeypatch, head_of(), *batch_of(60, True), "mean"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_batch_that_counts_nowhere(monkeypatch):
    hidden, targets = batch_of(20, False)
    ours, theirs = both_ways(monkeypatch, head_of(), hidden, torch.full_like(targets, IGNORE_INDEX), "sum")
    for one, other in zip(ours, theirs, strict=True):
        assert not one.any()
        torch.testing.assert_close(one, other)


def test_logits_as_far_apart_as_no_probability_can_say(monkeypatch):
    head = head_of(torch.float32)
    with torch.no_grad():
        head.weight.mul_(60)
    ours, theirs = both_ways(monkeypatch, head, *batch_of(200, False, torch.float32), "sum")
    assert ours[0] > 200 * 100
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_bf16_is_as_near_to_fp64_as_the_slow_line(monkeypatch):
    truth = found_by(head_of(), *batch_of(300, False), "mean")
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = both_ways(monkeypatch, head_of(torch.float32), *batch_of(300, False, torch.float32), "mean")
    for one, other, exact in zip(ours, theirs, truth, strict=True):
        assert (one - exact).abs().max() <= 2 * (other - exact).abs().max() + 1e-3


def test_gradients_of_a_tied_table_are_its_rows_and_add_up_with_the_embeddings():
    head = head_of()
    hidden, targets = batch_of(50, False)
    table = head.weight.detach().clone().requires_grad_()  # the head gets a tensor that is no leaf, as in training
    torch.func.functional_call(head, {"weight": table.clone()}, (hidden, targets)).nll.backward()
    alone = table.grad
    assert alone.is_sparse
    assert alone._values().shape == (head.gradient_rows(), D)
    head.loss(hidden, targets).nll.backward()  # of a leaf it is dense, since optimizers refuse a sparse one
    torch.testing.assert_close(head.weight.grad, alone.to_dense())
    head.weight.grad = None
    ids = torch.arange(0, V, 5)
    (head.loss(hidden, targets).nll + torch.nn.functional.embedding(ids, head.weight).square().sum()).backward()
    whole = alone.to_dense()
    whole[ids] += 2 * head.weight.detach()[ids]
    assert not head.weight.grad.is_sparse
    torch.testing.assert_close(head.weight.grad, whole)
    untied = head_of(tied=False)
    untied.loss(hidden, targets).nll.backward()
    assert not untied.weight.grad.is_sparse


def test_gradcheck():
    hidden, targets = batch_of(9, True)
    head = head_of(tied=False)
    names = [name for name, _ in head.named_parameters()]

    def loss(states: Tensor, *values: Tensor) -> Tensor:
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(head, weights, (states, targets), {"reduction": "sum"}).nll

    assert torch.autograd.gradcheck(loss, [hidden, *head.parameters()])


def test_without_gradients_none_are_computed(monkeypatch):
    head, (hidden, targets) = head_of(), batch_of(50, True)
    monkeypatch.setattr(two_steps.TableRows, "share", lambda *_: pytest.fail("a gradient was asked for"))
    with torch.no_grad():
        head.loss(hidden, targets)


def test_without_gradients_and_after_loading():
    head, (hidden, targets) = head_of(), batch_of(50, True)
    with torch.no_grad():
        loss = head.loss(hidden, targets).nll
        torch.testing.assert_close(loss, head.loss(hidden, targets, "none").nll.sum() / (targets >= 0).sum())
    head.load_state_dict(head.state_dict())
    before = head.table_rows
    head.after_load()
    assert head.table_rows is not before
    torch.testing.assert_close(head.loss(hidden, targets).nll, loss)


def test_where_it_does_not_fit_there_is_none():
    assert head_of(directions=1).table_rows is None
    assert head_of(own_shortlist=True).table_rows is None
    assert head_of(reserve=False).table_rows is None  # all tokens are trained, more than half of the table
