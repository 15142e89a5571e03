"""The first softmax in chunks, with classes of several columns, against the line that makes all logits."""

import pytest
import torch
import torch.nn.functional as F
from head_cases import batch_of, head_of

from grouped_lm.heads.losses import chunked
from grouped_lm.heads.losses.chunked import class_nll

N, D, SINGLE = 23, 5, 6


def slow(states, weight, bias, classes, n_single, directions):
    logits = F.linear(states, weight, bias).to(torch.promote_types(states.dtype, torch.float32))
    groups = logits[:, n_single:].unflatten(1, (-1, directions)).logsumexp(-1)
    logits = torch.cat([logits[:, :n_single], groups], 1)
    return F.cross_entropy(logits, classes, ignore_index=-1, reduction="sum")


def case(directions, groups=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(directions)
    columns = SINGLE + groups * directions
    leaves = [
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, D), (columns, D), (columns,))
    ]
    classes = torch.randint(-1, SINGLE + groups, (N,), generator=generator)
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], classes


@pytest.mark.parametrize("chunk_rows", [1, 7, 23, 100])
@pytest.mark.parametrize("directions", [1, 2, 3])
def test_equals_the_slow_line(directions, chunk_rows):
    leaves, classes = case(directions)
    fast = class_nll(*leaves, classes, SINGLE, directions, chunk_rows)
    wanted = slow(*leaves, classes, SINGLE, directions)
    torch.testing.assert_close(fast, wanted)
    ours, theirs = (torch.autograd.grad(-2.5 * value, leaves) for value in (fast, wanted))
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(class_nll(*leaves, classes, SINGLE, directions, chunk_rows), wanted)


@pytest.mark.parametrize("numbers", [1, 25, 60])
@pytest.mark.parametrize("far", [0, 1000])
def test_probabilities_in_place_of_many_logits_equal_the_slow_line(monkeypatch, far, numbers):
    monkeypatch.setattr(chunked, "SEPARATE_NUMBERS", numbers)
    leaves, classes = case(1)
    with torch.no_grad():
        leaves[2][3] += far  # all other classes have probabilities that are too small for their type
    fast, wanted = class_nll(*leaves, classes, SINGLE, 1, 7), slow(*leaves, classes, SINGLE, 1)
    torch.testing.assert_close(fast, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(value, leaves) for value in (fast, wanted)))


def test_gradcheck_without_a_bias_too():
    leaves, classes = case(3)
    assert torch.autograd.gradcheck(lambda *x: class_nll(*x, classes, SINGLE, 3, 10), leaves)
    assert torch.autograd.gradcheck(lambda s, w: class_nll(s, w, None, classes, SINGLE, 3, 10), leaves[:2])


def test_all_ignored_gives_zero():
    leaves, classes = case(2)
    value = class_nll(*leaves, torch.full_like(classes, -1), SINGLE, 2, 10)
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, leaves))


def test_operator_is_well_formed():
    from grouped_lm.heads.losses.chunked import _class_nll

    leaves, classes = case(2, dtype=torch.float32)
    torch.library.opcheck(_class_nll, (*leaves, classes, [SINGLE, 2, 10], torch.float32, True))


@pytest.mark.parametrize("name", ["dense", "shortlist"])
def test_bf16_is_as_good_as_torchs_own(name):
    """Dense under autocast, chunk by chunk, against autocast's plain line; both judged by fp64."""
    head = head_of(name, 2_003, 40, torch.float32, width=32, chunk_rows=16, shortlist_size=300)
    hidden, targets = batch_of(2_003, 200, dtype=torch.float32, width=32)
    leaves = [hidden, *head.parameters()]

    def figures(**more):
        loss = head.loss(hidden, targets, **more)
        return [loss.nll.detach().double(), *(g.double() for g in torch.autograd.grad(loss.nll, leaves))]

    exact = figures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked = figures()
        if name == "dense":
            head.chunk_rows = None
        plain = figures(accuracy=True)
    for truth, ours, theirs in zip(exact, chunked, plain, strict=True):
        assert (ours - truth).norm() <= 2 * (theirs - truth).norm() + 1e-4 * truth.norm()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("directions", [1, 4])
def test_shortlist_in_chunks_equals_its_slow_line(own, directions):
    head = head_of("shortlist", directions=directions, own_shortlist=own)
    hidden, targets = batch_of(103, 5, 67)
    leaves = [hidden, *head.parameters()]
    for reduction in ("mean", "sum"):
        fast, plain = (head.loss(hidden, targets, reduction, accuracy=slow) for slow in (False, True))
        for part in ("nll", "group_nll", "token_nll"):
            torch.testing.assert_close(getattr(fast, part), getattr(plain, part))
        ours, theirs = (torch.autograd.grad(3 * loss.nll, leaves) for loss in (fast, plain))
        torch.testing.assert_close(ours, theirs)
