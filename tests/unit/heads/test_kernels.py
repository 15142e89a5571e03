"""The kernels against fp64 autograd, in triton's interpreter, or on a GPU if there is one.

That they compile for GPUs and fit there, how many launches a step has, and that the host waits for nothing, is seen
without one.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from head_cases import batch_of, head_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from grouped_lm.config import Config, ModelConfig, TokenizerConfig
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import group_members
from grouped_lm.heads import HEADS
from grouped_lm.heads.losses import kernel_loss as losses
from grouped_lm.heads.losses import kernels
from grouped_lm.heads.losses.kernel_loss import TokenIndex, kernel_loss
from grouped_lm.heads.losses.kernels import first, groups, inside, route, tiles, two_steps
from grouped_lm.heads.losses.kernels.shared import add_by_group, route_groups, slot_losses
from grouped_lm.plan.fake_step import fake_model, faking

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = {torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""Errors by rounding the factors of products; the interpreter cuts fp32 down to bf16, which a GPU rounds."""
GROUPS = [30, 5, 64, 70, 1, 129, 0, 17]
SIZES = [  # V, K, sizes of groups, reserved ones among them, N, D
    pytest.param((353, 37, GROUPS, 2, 41, 48), id="odd"),
    pytest.param((300, 16, [284], 0, 17, 16), id="one-group"),
    pytest.param((13, 0, [1] * 13, 1, 20, 20), id="single-tokens"),
    pytest.param((150, 20, [100, 30], 1, 1, 96), id="one-row"),
    pytest.param((120, 70, [20, 30], 0, 20, 256), id="width-256"),
    pytest.param((90, 20, [40, 30], 1, 9, 300), id="by-cublas"),
]
LONG = [
    pytest.param((90, 20, [40, 30], 1, 9, 1024), id="width-1024"),
    pytest.param((700, 64, [100] * 5 + [136], 1, 300, 96), id="many-rows"),
    pytest.param((2_000, 256, [28] * 60 + [64], 1, 270, 128), id="stories"),
]


@pytest.fixture(autouse=True)
def kernels_on():
    with kernels.mode("on"):
        yield


def case(sizes, seed: int = 0):
    """The index of random groups, weights and states, and targets of which every seventh is ignored."""
    vocab_size, n_single, group_sizes, n_reserved, n_rows, width = sizes
    torch.manual_seed(seed)
    order, group = torch.randperm(vocab_size), torch.full((vocab_size,), -1)
    slot, owner = torch.zeros(vocab_size, dtype=torch.int64), torch.arange(len(group_sizes))
    slot[order[:n_single]] = torch.arange(n_single)
    group[order[n_single:]] = owner.repeat_interleave(torch.tensor(group_sizes))
    slot[order[n_single:]] = torch.cat([torch.arange(size) for size in group_sizes])
    n_group = len(group_sizes)
    parts = torch.rand(vocab_size)
    mass = torch.zeros(n_group).index_add(0, group[group >= 0], parts[group >= 0])
    parts = torch.where(group >= 0, parts / mass[group], 0.0)
    reserved = torch.full((n_reserved,), 0.003).log()
    index = TokenIndex(group, slot, n_group, n_single, parts, reserved).to(DEVICE)
    leaves = torch.randn(n_rows, width), 0.3 * torch.randn(vocab_size, width), torch.randn(vocab_size)
    targets = torch.randint(0, vocab_size, (n_rows,))
    targets[3::7] = -100
    class_bias = torch.randn(n_group - n_reserved)
    return index, [t.to(DEVICE) for t in (*leaves, class_bias)], targets.to(DEVICE)


def truth(index: TokenIndex, leaves: list[Tensor], targets: Tensor, class_weight: Tensor | None = None):
    """The (N,) losses of both steps by definition, from all V logits."""
    states, weight, bias, class_bias = leaves
    n_single = len(index.ids) - len(index.parts)
    ids, starts = index.ids.long(), index.starts.tolist()
    own, members = ids[:n_single], [ids[n_single:][a:b] for a, b in itertools.pairwise(starts)]
    shares = [index.parts[a:b].to(weight.dtype) for a, b in itertools.pairwise(starts)]
    logits = states @ weight.T + bias
    if class_weight is None:
        means = [share @ weight[some] for some, share in zip(members, shares, strict=True)][: len(class_bias)]
        rows = torch.stack(means) if means else weight[:0]
        class_logits = torch.cat([logits[:, own], states @ rows.T + class_bias], 1)
    else:
        class_logits = states @ class_weight.T + class_bias
    log_p = torch.cat([class_logits.log_softmax(1), class_logits.new_zeros(len(states), len(members))], 1)
    one, other = [], []
    for row, target in enumerate(targets.tolist()):
        place = int(index.token_class[target]) if target >= 0 else -1
        learned = 0 <= place < class_logits.shape[1]
        fixed = index.fixed[place].to(logits.dtype) if place >= 0 else 0.0
        one.append((-log_p[row, place] if learned else log_p.new_zeros(())) + fixed)
        inner = logits.new_zeros(())
        if place >= n_single:
            inner = -logits[row, members[place - n_single]].log_softmax(0)[int(index.token_slot[target])]
        other.append(inner)
    return torch.stack(one), torch.stack(other)


def run(index, leaves, targets, reduction, weights=(), dtype=torch.float32, class_weight=None):
    """Losses and gradients by kernels; those of "none" are of the sum of both losses times their (N,) weights."""
    given = [leaf.clone().requires_grad_() for leaf in [*leaves, *([] if class_weight is None else [class_weight])]]
    table, layer = (given[1], given[2]), (given[4] if class_weight is not None else None, given[3])
    with torch.autocast(DEVICE.type, dtype, enabled=dtype in HALF):
        total, one, other = kernel_loss(given[0], table, layer, index, targets, reduction)
    goal = (one * weights[0] + other * weights[1]).sum() if reduction == "none" else 1.7 * total
    return [total.detach(), one.detach(), other.detach()], torch.autograd.grad(goal, given)


def expected(index, leaves, targets, reduction, weights=(), class_weight=None):
    given = [leaf.double().requires_grad_() for leaf in [*leaves, *([] if class_weight is None else [class_weight])]]
    one, other = truth(index, given[:4], targets, given[4] if class_weight is not None else None)
    goal = (one * weights[0].double() + other * weights[1].double()).sum() if reduction == "none" else None
    if goal is None:
        count = (targets != -100).sum().clamp_min(1) if reduction == "mean" else 1
        one, other = one.sum() / count, other.sum() / count
        goal = 1.7 * (one + other)
    return [(one + other).detach(), one.detach(), other.detach()], torch.autograd.grad(goal, given)


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp_min(1e-6))


def assert_exact(found, wanted, loss_error=1e-6, gradient_error=1e-5):
    for mine, exact in zip(found[0], wanted[0], strict=True):
        assert error(mine, exact) <= loss_error
    for mine, exact in zip(found[1], wanted[1], strict=True):
        assert mine.shape == exact.shape
        assert error(mine, exact) <= gradient_error


@pytest.mark.parametrize("sizes", [*SIZES, *(pytest.param(*p.values, id=p.id, marks=pytest.mark.long) for p in LONG)])
def test_kernels_equal_fp64_autograd_and_repeat_to_the_bit(sizes):
    index, leaves, targets = case(sizes)
    found = run(index, leaves, targets, "mean")
    assert_exact(found, expected(index, leaves, targets, "mean"))
    again = run(index, leaves, targets, "mean")
    assert all(torch.equal(a, b) for a, b in zip([*found[0], *found[1]], [*again[0], *again[1]], strict=True))
    weights = torch.randn(2, len(targets), device=DEVICE)
    assert_exact(run(index, leaves, targets, "none", weights), expected(index, leaves, targets, "none", weights))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[-1]])
def test_half_precision_loses_what_rounding_loses(sizes, dtype):
    index, leaves, targets = case(sizes)
    found = run(index, leaves, targets, "sum", dtype=dtype)
    assert_exact(found, expected(index, leaves, targets, "sum"), HALF[dtype], HALF[dtype])
    assert found[0][0].dtype == torch.float32


def test_weights_and_states_in_half_precision_have_gradients_of_their_type():
    index, leaves, targets = case((150, 20, [100, 30], 1, 20, 32))
    leaves = [leaf.half() for leaf in leaves]
    found = run(index, leaves, targets, "mean")
    assert {g.dtype for g in found[1]} == {torch.float16}
    assert_exact(found, expected(index, leaves, targets, "mean"), 2e-3, 5e-3)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_layer_of_its_own_for_the_classes(reduction):
    index, leaves, targets = case((103, 0, [40, 1, 33, 29], 0, 20, 40))
    class_weight, weights = torch.randn(4, 40, device=DEVICE), torch.randn(2, 20, device=DEVICE)
    given = index, leaves, targets, reduction, weights
    assert_exact(run(*given, class_weight=class_weight), expected(*given, class_weight=class_weight))


def test_rows_in_several_chunks_and_spans(monkeypatch):
    monkeypatch.setattr(first, "AT_ONCE", 40 * 16)
    monkeypatch.setattr(first, "SPLIT_ROWS", 8)
    for sizes in ((150, 20, [100, 30], 1, 45, 32), (60, 20, [10, 30], 1, 45, 300)):
        index, leaves, targets = case(sizes)
        assert_exact(run(index, leaves, targets, "sum"), expected(index, leaves, targets, "sum"))


@pytest.mark.parametrize("width", [32, 300])
def test_nothing_counted_is_zero_and_a_wrong_id_is_nan(width):
    index, leaves, targets = case((150, 20, [100, 30], 1, 20, width))
    values, gradients = run(index, leaves, torch.full_like(targets, -100), "mean")
    assert values[0] == 0
    assert all(float(g.abs().max()) == 0 for g in gradients)
    targets[0] = 150
    total, _, _ = run(index, leaves, targets, "none", torch.ones(2, 20, device=DEVICE))[0]
    assert total.isnan().tolist() == [True] + [False] * 19


def test_without_gradients_the_losses_are_the_same():
    index, leaves, targets = case((150, 20, [100, 30], 1, 20, 32))
    with torch.no_grad():
        plain = kernel_loss(leaves[0], (leaves[1], leaves[2]), (None, leaves[3]), index, targets, "mean")
    assert all(map(torch.equal, plain, run(index, leaves, targets, "mean")[0]))


def test_gradients_survive_a_graph_that_is_kept_and_have_none_themselves():
    index, leaves, targets = case((150, 20, [100, 30], 1, 20, 32))
    states = leaves[0].requires_grad_()
    total, _, _ = kernel_loss(states, (leaves[1], leaves[2]), (None, leaves[3]), index, targets, "mean")
    (once,) = torch.autograd.grad(3 * total, [states], retain_graph=True)
    (twice,) = torch.autograd.grad(3 * total, [states], retain_graph=True)
    assert torch.equal(once, twice)
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        torch.autograd.grad(3 * total, [states], create_graph=True)


@pytest.mark.parametrize(("n_rows", "n_group"), [(1, 1), (40, 7), (700, 100)])
def test_rows_are_sorted_by_group_and_keep_their_order(n_rows, n_group):
    own = torch.randint(-1, n_group, (n_rows,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    way = route_groups(own, n_group)
    key = torch.where(own < 0, n_group, own)
    assert torch.equal(way.place.long(), torch.argsort(key, stable=True))
    counts = torch.bincount(key, minlength=n_group + 1)
    assert torch.equal(way.borders[: n_group + 1].long(), counts.cumsum(0) - counts)
    assert torch.equal(way.tiles[:n_group].long(), (-(-counts[:n_group] // 16)).cumsum(0))


@pytest.mark.parametrize(("n_tokens", "width", "n_group", "n_slot"), [(50, 24, 5, 7), (33, 40, 3, 100), (1, 8, 1, 1)])
def test_slots_of_one_shared_layer_and_sums_by_group(n_tokens, width, n_group, n_slot):
    torch.manual_seed(0)
    own = torch.randint(-1, n_group, (n_tokens,))
    sizes = torch.randint(1, n_slot + 1, (n_group,))
    leaves = [
        torch.randn(s, dtype=torch.float64) for s in ((n_tokens, width), (n_slot, width), *[(n_group, n_slot)] * 2)
    ]
    leaves[3].masked_fill_(torch.arange(n_slot) >= sizes[:, None], -torch.inf)
    slots = (torch.rand(n_tokens) * sizes[own.clamp_min(0)]).long()
    states, weight, scale, shift = [leaf.requires_grad_() for leaf in leaves]
    products = states @ weight.T
    logits = scale[own.clamp_min(0)] * products + shift[own.clamp_min(0)]
    nll = F.cross_entropy(logits, slots, reduction="none").masked_fill(own < 0, 0.0).sum()
    d_scale, d_shift, d_products = torch.autograd.grad(nll, [scale, shift, products])
    given = [leaf.detach().float().to(DEVICE) for leaf in leaves]
    way = route_groups(own.to(DEVICE), n_group)
    value, errors, factors, of_products = slot_losses(*given, way, slots.to(DEVICE), True)
    to = torch.ones_like(given[3]), torch.ones_like(given[2])
    add_by_group(errors, factors, way, *to)
    found, wanted = [value, *to, of_products], [nll.detach(), 1 + d_shift, 1 + d_scale, d_products]
    for mine, exact in zip(found, wanted, strict=True):
        assert error(mine.cpu(), exact) <= 1e-5
    assert torch.equal(slot_losses(*given, way, slots.to(DEVICE), False)[0], value)


@pytest.mark.parametrize("vocab_size", [103, 20])
def test_the_softmax_inside_groups_alone(vocab_size):
    torch.manual_seed(0)
    group_size, n_outside = 7, 10
    order, place = torch.randperm(vocab_size), torch.arange(vocab_size - n_outside)
    group, slot = torch.full((vocab_size,), -1), torch.arange(vocab_size)
    group[order[n_outside:]], slot[order[n_outside:]] = place // group_size, place % group_size
    members = group_members(group, slot, -(-len(place) // group_size), 8)
    targets, d_nll = torch.randint(0, vocab_size, (30,)), torch.randn(30)
    own = group[targets].masked_fill(torch.arange(30) % 5 == 0, -1)
    leaves = [
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((30, 24), (vocab_size, 24), (vocab_size,))
    ]
    ids = members[own.clamp_min(0)]
    logits = (leaves[1][ids.clamp_min(0)] @ leaves[0].unsqueeze(-1)).squeeze(-1) + leaves[2][ids.clamp_min(0)]
    log_p, counted = logits.masked_fill(ids < 0, -torch.inf).log_softmax(-1), own >= 0
    nll = -log_p.gather(1, slot[targets].clamp_max(7)[:, None])[:, 0].masked_fill(~counted, 0.0)
    wanted = torch.autograd.grad((nll * d_nll).sum(), leaves)
    given = [leaf.detach().float().to(DEVICE) for leaf in leaves]
    places = members.to(DEVICE), own.to(DEVICE), slot[targets].to(DEVICE)
    found, hits = groups.forward(given, places, torch.float32)
    assert error(found.cpu(), nll.detach()) <= 1e-6
    assert torch.equal(hits.cpu(), (log_p.argmax(-1) == slot[targets]) & counted)
    for mine, exact in zip(groups.backward(d_nll.to(DEVICE), given, places, torch.float32), wanted, strict=True):
        assert error(mine.cpu(), exact) <= 1e-5


DEFAULT = {"directions": 0, "shared_rows": 50, "reserve": True, "shortlist_size": 20}


def default_head(width=16, **own):
    return head_of("shortlist", 103, 9, torch.float32, width=width, **DEFAULT | own).to(DEVICE)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("shortlist", DEFAULT),
        ("shortlist", DEFAULT | {"tied": False}),
        ("shortlist", {"own_shortlist": True, "shortlist_size": 20}),
        ("class_full", {}),
        ("grouped", {}),
        ("film", {}),
    ],
    ids=["default", "untied", "own-shortlist", "class_full", "grouped", "film"],
)
def test_heads_with_kernels_equal_heads_without(name, own, autocast):
    head = head_of(name, 103, 9, torch.float32, width=16, **own).to(DEVICE)
    hidden, targets = batch_of(103, 4, 10, dtype=torch.float32, width=16)
    states, targets = hidden.detach().to(DEVICE).requires_grad_(), targets.to(DEVICE)

    def step(module, states, reduction="mean"):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
            loss = module(states, targets, reduction=reduction)
        goal = 3 * loss.nll.square().sum()
        found = torch.autograd.grad(goal, [states, *head.parameters()], allow_unused=True)
        parts = loss.nll, loss.group_nll, loss.token_nll
        return [*(part.detach() for part in parts), *(g.to_dense() for g in found)]

    reductions = ["mean", "none"] if name in ("shortlist", "class_full") else ["mean"]
    found = [step(head, states, reduction) for reduction in reductions]
    if not autocast:
        torch._dynamo.reset()
        found.append(step(torch.compile(head, backend="aot_eager", fullgraph=True, dynamic=False), states))
    with kernels.mode("off"):
        plain = [step(head, states, reduction) for reduction in [*reductions, "mean"][: len(found)]]
    for ours, theirs in zip(found, plain, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.shape == other.shape
            assert error(mine, other.double()) <= (0.05 if autocast else 2e-6)


def test_the_index_follows_loading_moving_and_copies():
    head, other = default_head(), head_of("shortlist", 103, 9, torch.float32, width=16, **DEFAULT)
    hidden, targets = (t.to(DEVICE) for t in batch_of(103, 30, dtype=torch.float32, width=16))
    first_loss = head.loss(hidden, targets).nll
    swapped = torch.randperm(head.n_learned, generator=torch.Generator().manual_seed(0))
    inside = (other.token_to_group >= 0) & (other.token_to_group < other.n_learned)
    other.token_to_group[inside] = swapped[other.token_to_group[inside].long()].int()
    other.after_load()
    head.load_state_dict(other.state_dict())
    ours = head.loss(hidden, targets).nll
    with kernels.mode("off"):
        torch.testing.assert_close(ours, head.loss(hidden, targets).nll)
        assert not torch.equal(ours, first_loss)
    assert not any("index" in name for name in head.state_dict())
    assert head.double().token_index().parts.dtype == torch.float32


class Launches(TorchDispatchMode):
    """Counts what a device would launch: operators that are no views and allocate no memory alone."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach", "_unsafe_view", "view", "alias")):
            self.names.append(name)
        return func(*args, **kwargs or {})


@pytest.fixture
def counted(monkeypatch):
    """Give a function that counts the launches of a call, of kernels and of operators."""
    launches = Launches()

    def count(kernel, grid, *arguments, **options):
        launches.names.append(kernel.__name__)
        with _disable_current_modes():
            kernel[grid](*arguments, **options)

    for module in (first, inside, route, two_steps):
        monkeypatch.setattr(module, "launch", count)

    def of(call) -> list[str]:
        launches.names.clear()
        with launches:
            call()
        return list(launches.names)

    return of


def test_a_step_of_the_default_has_at_most_14_launches(counted, monkeypatch):
    monkeypatch.setattr("grouped_lm.heads.losses.functional.may_look", lambda _: False)  # as on a GPU
    head = default_head()
    hidden, targets = (t.to(DEVICE) for t in batch_of(103, 2, 20, dtype=torch.float32, width=16))
    head.loss(hidden, targets).backward()  # the index is built
    hidden.grad = head.weight.grad = head.bias.grad = head.group_bias.grad = None
    names = counted(lambda: head.loss(hidden, targets).backward())
    assert len(names) <= 14, names
    assert len(names) >= 10
    with torch.no_grad():
        assert len(counted(lambda: head.loss(hidden, targets))) <= 7
        assert len(counted(lambda: head.loss(hidden, targets, reduction="none"))) <= 7


@pytest.mark.parametrize("width", [32, 300])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_host_reads_nothing_and_sizes_follow_from_shapes(width, reduction, monkeypatch):
    """With fake tensors, every reading of a number is an error; so grids and sizes cannot depend on one."""
    index, leaves, targets = case((150, 20, [100, 30], 1, 20, width))
    grids = []

    def note(kernel, grid, *arguments, **options):
        grids.append((kernel.__name__, grid))
        tiles.launch(kernel, grid, *arguments, **options)

    for module in (first, inside, route, two_steps):
        monkeypatch.setattr(module, "launch", note)
    with FakeTensorMode() as mode:
        convert = mode.from_tensor
        for name, buffer in index.named_buffers():
            setattr(index, name, convert(buffer))
        states, weight, bias, class_bias = (convert(leaf).requires_grad_() for leaf in leaves)
        total, _, _ = kernel_loss(states, (weight, bias), (None, class_bias), index, convert(targets), reduction)
        total.sum().backward()
        assert weight.grad.shape == weight.shape
    assert dict(grids)["inside_rows"] == (20 // 16 + 2,)
    assert dict(grids)["table_rows"] == (len(index.work), -(-width // 64) if width > 32 else 1)


def test_a_million_tokens_of_width_1024_keep_within_offsets_of_32_bits(monkeypatch):
    largest = {}

    def note(kernel, grid, *arguments, **options):
        largest[kernel.__name__] = max(t.numel() for t in arguments if isinstance(t, Tensor))
        tiles.launch(kernel, grid, *arguments, **options)

    for module in (first, inside, route, two_steps):
        monkeypatch.setattr(module, "launch", note)
    model = ModelConfig(n_layer=1, n_head=2, n_embd=1024, block_size=16)
    config = Config(model=model, head=HEADS["shortlist"].schema(), tokenizer=TokenizerConfig(name="bytes"))
    with kernels.mode("plan"), faking():
        head = fake_model(config, vocab_size=1_000_000).head
        with torch.autocast("cpu", torch.bfloat16):
            hidden, targets = torch.zeros(4096, 1024, requires_grad=True), torch.zeros(4096, dtype=torch.int64)
            head.loss(hidden, targets).backward()
    assert max(largest.values()) == head.weight.numel() < 2**31
    assert {"inside_rows", "table_rows"} <= set(largest)


@pytest.mark.parametrize("keep", [True, False])
def test_the_operators_of_compiled_code_have_the_shapes_they_say(keep):
    index, leaves, targets = case((150, 20, [100, 30], 1, 20, 32))
    leaves = [leaf.requires_grad_() for leaf in leaves] if keep else leaves
    given = *leaves[:3], None, leaves[3], *index.buffers(), targets, torch.float32
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(losses._traced_sums, (*given, True, keep), test_utils=checks)
    torch.library.opcheck(losses._traced_rows, given, test_utils=checks)


def test_kernels_are_asked_for_forbidden_and_refused(monkeypatch):
    cpu = torch.device("cpu")
    assert kernels.chosen(cpu, torch.float32, 10)
    assert not kernels.chosen(cpu, torch.float64, 10)
    assert not kernels.chosen(cpu, torch.float32, kernels.MAX_GROUPS + 1)
    for mode in ("auto", "off"):
        with kernels.mode(mode):
            assert not kernels.chosen(cpu, torch.float32, 10)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigError, match=r"train\.kernels=on needs"):
        kernels.set_mode("on", cpu)
    with pytest.raises(ConfigError, match=r"train\.kernels must be one of auto, on, off, got 'yes'"):
        kernels.set_mode("yes", cpu)


SHARED_BYTES = {75: 65_536, 80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448}
"""What a program may have, by compute capability (NVIDIA CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability")."""
CALLED = ["first_rows", "inside_rows", "table_rows"]
EVERY = [(c, width, kind) for c in (80, 89, 90, 100) for width in (64, 128, 256, 1024) for kind in ("bf16", "fp32")]


def compile_kernels(tmp_path, capability: int, width: int, kind: str, *only: str) -> dict[str, dict]:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).parents[2] / "helpers" / "compile_kernels.py"
    command = [sys.executable, script, str(capability), str(width), kind, *only]
    done = subprocess.run(command, env=environment, cwd=script.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="triton is built for Linux")
def test_kernels_compile_for_a_gpu_without_spills(tmp_path):
    found = compile_kernels(tmp_path, 90, 128, "bf16", *CALLED)
    assert list(found) == ["inside_rows", "table_rows", "first_rows"]
    assert all(kernel["spilled"] == 0 and kernel["products"] in ("mma", "wgmma") for kernel in found.values()), found
    assert all(kernel["shared"] <= SHARED_BYTES[89] for kernel in found.values()), found


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="triton is built for Linux")
@pytest.mark.parametrize(("capability", "width", "kind"), [*EVERY, (75, 128, "fp16"), (75, 128, "fp32")])
def test_every_kernel_compiles_and_fits(capability, width, kind, tmp_path):
    found = compile_kernels(tmp_path, capability, width, kind)
    assert all(kernel["shared"] <= SHARED_BYTES[capability] for kernel in found.values()), found
    if width == 128 and kind == "bf16":
        assert not any(kernel["spilled"] for kernel in found.values()), found
