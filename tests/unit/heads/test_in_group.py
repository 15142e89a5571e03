"""The fused softmax inside groups equals the slow line beside it, in values and gradients."""

import pytest
import torch
from head_cases import head_of, plain_shortlist
from torch import Tensor

from grouped_lm.heads import (
    IGNORE_INDEX,
    ClassFullConfig,
    DenseConfig,
    Head,
    HeadLoss,
    TwoLevelHead,
    build_head,
    class_full,
    shortlist,
)
from grouped_lm.heads.context import GroupedTokens
from grouped_lm.heads.losses import in_group
from grouped_lm.heads.losses.in_group import _in_group as in_group_op
from grouped_lm.heads.losses.in_group import backward_by_borders, forward_by_borders

D = 6
GROUPINGS = ["merge_rank", "frequency", "random"]


def random_head(config, vocab_size: int, grouping: str = "merge_rank", dtype=torch.float64) -> Head:
    torch.manual_seed(0)
    wte = torch.nn.Parameter(torch.randn(vocab_size, D, dtype=torch.float64))
    head = build_head(config, D, vocab_size, grouping, torch.arange(vocab_size) % 11, wte)
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


@pytest.mark.parametrize("grouping", ["frequency", "sqrt_frequency"])
@pytest.mark.parametrize("chunk_rows", [256, 5, 1])
def test_groups_that_share_a_product_equal_their_slow_line(monkeypatch, chunk_rows, grouping):
    monkeypatch.setattr(in_group, "PIECE_ROWS", (chunk_rows, chunk_rows))
    head = random_head(ClassFullConfig(group_size=25), 103, grouping)
    hidden, targets = states_and_targets(103, 50)
    fused = loss_and_gradients(head, type(head).loss, targets, hidden)
    slow = loss_and_gradients(head, TwoLevelHead.loss, targets, hidden)
    for one, other in zip(fused, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("values", [{"directions": 2}, {"own_shortlist": True}, {"shared_rows": 50, "reserve": True}])
@pytest.mark.parametrize("autocast", [False, True])
def test_both_steps_in_one_node_equal_two_operators(monkeypatch, values, autocast):
    hidden, targets = states_and_targets(103, 300)
    for config in (ClassFullConfig(group_size=25), plain_shortlist(shortlist_size=20, group_size=9, **values)):
        head = random_head(config, 103, "frequency")
        if autocast:
            head, hidden = head.float(), hidden.detach().float().requires_grad_()
        found = []
        for one_node in (True, False):
            for module in (class_full, shortlist):
                monkeypatch.setattr(module, "at_once", lambda *_, answer=one_node: answer)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = head.loss(hidden, targets)
            inputs = [hidden, *head.parameters()]
            found.append([loss.nll, loss.group_nll, *torch.autograd.grad(2.5 * loss.nll, inputs)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-2 if autocast else None, rtol=2e-2 if autocast else None)


def shortlist_slow_line(head: Head, hidden: Tensor, targets: Tensor, reduction: str, accuracy: bool) -> HeadLoss:
    """The loss and its parts from the V-wide log-probabilities, under plain autograd."""
    joint, counted, token = head.log_prob(hidden), targets != IGNORE_INDEX, targets.clamp_min(0)
    groups, n_class = head.token_to_group, head.shortlist_size + head.n_group
    class_of = torch.where(groups < 0, head.token_to_slot, groups + head.shortlist_size)
    same = class_of == class_of[token, None]
    first = torch.stack([joint[:, class_of == c].logsumexp(-1) for c in range(n_class)], dim=-1)
    nll = torch.where(counted, -joint.gather(1, token[:, None])[:, 0], 0.0)
    group_nll = torch.where(counted, -first.gather(1, class_of[token, None])[:, 0], 0.0)
    group_hits = (first.argmax(-1) == class_of[token]) & counted
    token_hits = (joint.masked_fill(~same, -torch.inf).argmax(-1) == token) & counted
    return HeadLoss(nll, group_nll, nll - group_nll, group_hits, token_hits)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(
    ("vocab_size", "values"),
    [
        (103, {"shortlist_size": 20, "group_size": 7}),
        (103, {"shortlist_size": 20, "directions": 3}),
        (103, {"shortlist_size": 0, "directions": 2}),
        (103, {"shortlist_size": 102}),
        (103, {"shortlist_size": 20, "group_size": 5, "directions": 2, "shared_rows": 30, "reserve": True}),
        (103, {"shortlist_size": 20, "group_size": 7, "directions": 0, "shared_rows": 200, "reserve": True}),
        (103, {"shortlist_size": 0, "group_size": 1, "own_shortlist": True, "shared_rows": 30, "reserve": True}),
        (9, {"shortlist_size": 4, "group_size": 9}),
        (9, {}),
        (1, {"shortlist_size": 0}),
        (1, {}),
    ],
)
def test_shortlist_equals_its_slow_line(vocab_size, values, grouping):
    head = random_head(plain_shortlist(**values), vocab_size, grouping)
    hidden, targets = states_and_targets(vocab_size, 50)
    fused = loss_and_gradients(head, type(head).loss, targets, hidden)
    slow = loss_and_gradients(head, shortlist_slow_line, targets, hidden)
    for ours, theirs in zip(fused, slow, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_shortlist_holds_the_most_frequent_tokens():
    head = random_head(plain_shortlist(shortlist_size=20), 103)  # counts are id % 11
    assert head.outside.tolist() == [*range(10, 103, 11), *range(9, 103, 11), *range(8, 20, 11)]
    unknown = build_head(plain_shortlist(shortlist_size=20, tied=False), D, 103)
    assert unknown.outside.tolist() == list(range(20))


def test_directions_change_nothing_at_the_start():
    hidden, targets = states_and_targets(2_003, 200, torch.float32)
    losses = []
    for directions in (1, 16):
        torch.manual_seed(0)
        config = plain_shortlist(shortlist_size=100, directions=directions, tied=False)
        losses.append(build_head(config, D, 2_003).loss(hidden, targets).nll.item())
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


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
    one = build_head(ClassFullConfig(group_size=31), D, 31, grouping, counts, wte).double()
    hidden, targets = states_and_targets(31, 40)
    torch.testing.assert_close(one.loss(hidden, targets).nll, dense.loss(hidden, targets).nll)
    torch.testing.assert_close(one.log_prob(hidden), dense.log_prob(hidden))


BOTH = [ClassFullConfig(), plain_shortlist(shortlist_size=20, directions=2)]


@pytest.mark.parametrize("config", BOTH, ids=str)
@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_gradients_under_bf16_autocast(states, config):
    head = random_head(config, 103, "random", torch.float32)
    hidden, targets = states_and_targets(103, 200, torch.float32)
    exact = torch.autograd.grad(head.loss(hidden, targets).nll, [hidden, *head.parameters()])
    cast = hidden.detach().to(states).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(cast, targets).nll
    rough = torch.autograd.grad(loss, [cast, *head.parameters()])
    for ours, theirs in zip(rough, exact, strict=True):
        assert (ours - theirs).abs().max() <= 0.03 * theirs.abs().max()
    assert [g.dtype for g in rough] == [states, *(p.dtype for p in head.parameters())]


@pytest.mark.parametrize("config", BOTH, ids=str)
def test_a_loaded_grouping_is_followed(config):
    ours, theirs = (random_head(config, 103, name) for name in ("merge_rank", "random"))
    ours.load_state_dict(theirs.state_dict())
    ours.after_load()
    hidden, targets = states_and_targets(103, 50)
    torch.testing.assert_close(ours.loss(hidden, targets).nll, theirs.loss(hidden, targets).nll)
    torch.testing.assert_close(ours.log_prob(hidden), theirs.log_prob(hidden))


@pytest.mark.parametrize("config", BOTH, ids=str)
def test_nothing_of_the_size_of_the_logits_is_kept(config):
    head = random_head(config, 10_000)
    hidden, targets = states_and_targets(10_000, 64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        head.loss(hidden, targets)
    own = {t.data_ptr() for t in (*head.parameters(), *head.buffers())}
    assert sum(t.numel() for t in kept if t.data_ptr() not in own) < 64 * head.n_group / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 50])
def test_grouped_products_of_a_device_equal_the_loop(dtype, count):
    """The passes for a GPU, run here on the CPU: `F.grouped_mm` exists for both."""
    torch.manual_seed(0)
    order, width = torch.randperm(100), 16
    token_to_group, token_to_slot = torch.full((100,), -1), torch.arange(100)
    token_to_group[order[10:]], token_to_slot[order[10:]] = torch.arange(90) // 13, torch.arange(90) % 13
    token_to_slot[order[:10]] = torch.arange(10)
    rows = GroupedTokens()
    rows.assign_groups(token_to_group, token_to_slot, 7, 13, 10)
    hidden, weight, bias = torch.randn(count, width), torch.randn(100, width), torch.randn(100)
    targets = torch.randint(0, 100, (count,))
    groups, slots = token_to_group[targets], token_to_slot[targets]
    members = rows.padded_members()
    where = members, groups, slots, rows.outside[:0], dtype, True
    nll, hits, _ = in_group_op(hidden, weight, bias, *where)
    theirs = forward_by_borders((hidden, weight, bias), where[:3], dtype)
    close = {"rtol": 0.02, "atol": 0.02} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close((nll, hits), theirs, **close)
    d_nll = torch.randn(count)
    ours = torch.autograd.grad(
        in_group_op(*(leaves := [t.requires_grad_() for t in (hidden, weight, bias)]), *where)[0], leaves, d_nll
    )
    with torch.no_grad():
        theirs = backward_by_borders(d_nll, (hidden, weight, bias), where[:3], dtype)
    torch.testing.assert_close(ours, theirs, **close)


def test_columns_that_decoding_keeps_follow_the_weights():
    head = random_head(plain_shortlist(shortlist_size=20, directions=0, shared_rows=83), 103, "frequency")
    states, _ = states_and_targets(103, 5)

    @torch.no_grad()
    def first() -> tuple[Tensor, Tensor]:
        return head.class_log_prob(states), head.log_prob(states)

    before = first()
    torch.testing.assert_close(first(), before, rtol=0, atol=0)
    with torch.no_grad():
        head.weight.mul_(2)
    changed = first()
    assert not torch.equal(changed[0], before[0])
    head.load_state_dict({name: tensor.clone() for name, tensor in head.state_dict().items()})
    torch.testing.assert_close(first(), changed)
    torch.testing.assert_close(head.class_log_prob(states).detach(), changed[0])


def test_checkpoints_hold_only_what_the_options_need():
    names = {"weight", "bias", "directions", "group_bias", "token_to_group", "token_to_slot"}
    assert set(random_head(plain_shortlist(shortlist_size=20), 103).state_dict()) == names
    new = plain_shortlist(shortlist_size=20, group_size=5, directions=0, shared_rows=30, reserve=True)
    saved = {"reserved", "sharing", "parts"}
    assert set(random_head(new, 103, "frequency").state_dict()) == names - {"directions"} | saved


@pytest.mark.parametrize("name", ["grouped", "film", "class_full", "shortlist"])
def test_no_buffer_keeps_more_memory_than_its_elements(name):
    """A slice of a sorted (V,) table is a view, which keeps 8 V bytes."""
    for key, buffer in head_of(name).named_buffers():
        assert buffer.untyped_storage().nbytes() == buffer.numel() * buffer.element_size(), key
