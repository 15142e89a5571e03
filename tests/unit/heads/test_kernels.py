"""The kernels against the lines that they equal, gradients included: in triton's interpreter, or on a GPU if there is.

That they compile for GPUs, and fit there, is seen without one.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from head_cases import batch_of, head_of
from torch._subclasses.fake_tensor import FakeTensorMode

from grouped_lm.grouping import group_members
from grouped_lm.heads import class_full, shortlist
from grouped_lm.heads.losses import kernels
from grouped_lm.heads.losses.kernels import MAX_SLOTS, chosen, own_rows
from grouped_lm.heads.losses.kernels.slot_loss import SlotGradients, slot_loss
from grouped_lm.heads.losses.kernels.tiles import cut_into_tiles

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = {torch.bfloat16, torch.float16}
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_as_near(ours, eager, truth, times=2):
    """Every figure is at most so many times as far from fp64 as the plain line in the same type, and a bit."""
    for mine, plain, exact in zip(ours, eager, truth, strict=True):
        assert mine.shape == exact.shape
        if exact.numel():
            bound = times * (plain - exact).abs().max() + 1e-6 * exact.abs().max() + 1e-6
            assert (mine - exact).abs().max() <= bound


def factor(dtype: torch.dtype) -> int:
    """The interpreter cuts fp32 down to bf16, which a GPU rounds: an error of up to twice the size, on one side."""
    return 4 if dtype is torch.bfloat16 and DEVICE.type == "cpu" else 2


def on_device(leaves, dtype):
    """Leaves that `dtype` can hold, for that reason: only what a kernel makes itself is then cut, or rounded."""
    return [leaf.to(dtype).float().to(DEVICE) for leaf in leaves]


def slot_case(n_tokens, width, n_group, n_slot, dtype):
    """States, weights, groups of which some are none, and targets whose slot is no padding."""
    draw = torch.Generator().manual_seed(0)
    states, scale, shift = (torch.randn(s, generator=draw) for s in ((n_tokens, width), *[(n_group, n_slot)] * 2))
    weight = torch.randn(n_slot, width, generator=draw) / math.sqrt(width)
    sizes = torch.randint(1, n_slot + 1, (n_group,), generator=draw)
    shift.masked_fill_(torch.arange(n_slot) >= sizes[:, None], -torch.inf)
    groups = torch.randint(-1, n_group, (n_tokens,), generator=draw)
    slots = (torch.rand(n_tokens, generator=draw) * sizes[groups.clamp_min(0)]).long()
    return on_device((states, weight, scale, shift), dtype), groups.to(DEVICE), slots.to(DEVICE)


def plain_slot_loss(leaves, groups, slots, dtype, exact):
    """The eager line with products of `dtype` factors, and its gradients; all else in `exact`."""
    leaves = [leaf.to(exact).requires_grad_() for leaf in leaves]
    states, weight, scale, shift = leaves
    with torch.autocast(DEVICE.type, dtype, enabled=exact is torch.float32 and dtype in HALF):
        products = F.linear(states, weight).to(exact)
    own = groups.clamp_min(0)
    logits = F.embedding(own, scale) * products + F.embedding(own, shift)
    nll = F.cross_entropy(logits, slots, reduction="none").masked_fill(groups < 0, 0.0)
    return [nll.detach(), *torch.autograd.grad(nll.sum(), leaves)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("n_tokens", "width", "n_group", "n_slot"),
    [(50, 24, 5, 7), (33, 40, 3, 100), (1, 8, 1, 1), (0, 8, 2, 3), (17, 6, 40, 16)],
)
def test_slots_equal_the_plain_line(n_tokens, width, n_group, n_slot, dtype):
    leaves, groups, slots = slot_case(n_tokens, width, n_group, n_slot, dtype)
    truth, eager = (plain_slot_loss(leaves, groups, slots, dtype, exact) for exact in (torch.float64, torch.float32))
    to = SlotGradients(*(torch.zeros_like(leaf) for leaf in leaves))
    nll = slot_loss(*leaves, groups, slots, dtype, to)
    assert_as_near([nll, to.states, to.weight, to.scale, to.shift], eager, truth, factor(dtype))
    without = slot_loss(*leaves, groups, slots, dtype, None)  # compiled anew, and on a GPU summed in another order
    torch.testing.assert_close(without, nll, rtol=1e-5, atol=1e-6)


def own_case(n_tokens, width, vocab_size, group_size, n_outside, dtype):
    """States, a table, a bias; the members of the groups, and groups and slots of targets, some of them ignored."""
    torch.manual_seed(0)
    order, inside = torch.randperm(vocab_size), torch.arange(vocab_size - n_outside)
    n_group = -(-inside.numel() // group_size)
    token_to_group, token_to_slot = torch.full((vocab_size,), -1), torch.arange(vocab_size)
    token_to_group[order[n_outside:]], token_to_slot[order[n_outside:]] = inside // group_size, inside % group_size
    members = group_members(token_to_group, token_to_slot, n_group, 8 * math.ceil(group_size / 8))
    leaves = torch.randn(n_tokens, width), torch.randn(vocab_size, width), torch.randn(vocab_size)
    targets = torch.randint(0, vocab_size, (n_tokens,))
    groups = token_to_group[targets]
    groups[::5] = -1
    return on_device(leaves, dtype), *(t.to(DEVICE) for t in (members, groups, token_to_slot[targets]))


def plain_own_rows(leaves, members, groups, slots, d_nll, dtype, exact):
    """The eager line, which gathers (N, S, D) rows: nats, and gradients for `d_nll`; and which rows hit."""
    hidden, weight, bias = leaves = [leaf.to(exact).requires_grad_() for leaf in leaves]
    ids = members[groups.clamp_min(0)] if len(members) else members.new_full((len(groups), 1), -1)
    with torch.autocast(DEVICE.type, dtype, enabled=exact is torch.float32 and dtype in HALF):
        products = (weight[ids.clamp_min(0)] @ hidden.unsqueeze(-1)).squeeze(-1).to(exact)
    logits = (products + bias[ids.clamp_min(0)]).masked_fill(ids < 0, -torch.inf)
    log_p, counted = torch.where(groups[:, None] >= 0, logits, 0.0).log_softmax(-1), groups >= 0
    target = torch.where(counted, slots, 0)
    nll = torch.where(counted, -log_p.gather(1, target[:, None])[:, 0], 0.0)
    found = torch.autograd.grad((nll * d_nll).sum(), leaves)
    return [nll.detach(), *found], (log_p.argmax(-1) == target) & counted


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("n_tokens", "width", "vocab_size", "group_size", "n_outside"),
    [
        (50, 24, 103, 7, 10),
        (70, 70, 300, 100, 0),
        (1, 8, 9, 9, 3),
        (9, 8, 20, 4, 20),
        (200, 6, 60, 50, 3),
        (0, 8, 9, 3, 0),
    ],
)
def test_own_rows_equal_the_plain_line(n_tokens, width, vocab_size, group_size, n_outside, dtype):
    leaves, members, groups, slots = own_case(n_tokens, width, vocab_size, group_size, n_outside, dtype)
    d_nll = torch.randn(n_tokens, device=DEVICE)
    (truth, hits), (eager, _) = (
        plain_own_rows(leaves, members, groups, slots, d_nll, dtype, exact) for exact in (torch.float64, torch.float32)
    )
    places = members, groups, slots
    nll, found = own_rows.forward(leaves, places, dtype)
    gradients = own_rows.backward(d_nll, leaves, places, dtype)
    assert_as_near([nll, *gradients], eager, truth, factor(dtype))
    if dtype is torch.float32:
        assert torch.equal(found, hits)
    again = own_rows.backward(d_nll, leaves, places, dtype)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


@pytest.mark.parametrize(("n_tokens", "rows"), [(0, 16), (1, 16), (40, 16), (400, 16), (400, 32)])
def test_tiles_cover_every_row_of_a_group_once(n_tokens, rows):
    groups = torch.randint(-1, 7, (n_tokens,), generator=torch.Generator().manual_seed(0))
    tiles = cut_into_tiles(groups, 7, rows)
    seen = []
    for group, first in zip(tiles.group.tolist(), tiles.first.tolist(), strict=True):
        if group < 7:
            own = tiles.place[first : min(first + rows, int(tiles.ends[group]))]
            assert own.numel()
            assert set(groups[own].tolist()) == {group}
            seen += own.tolist()
    assert sorted(seen) == (groups >= 0).nonzero()[:, 0].tolist()


def test_tiles_are_cut_without_waiting_for_the_device():
    with FakeTensorMode():
        assert cut_into_tiles(torch.zeros(100, dtype=torch.int64), 7, 16).group.shape == (13,)


def test_a_kernel_is_chosen_on_a_gpu_alone(monkeypatch):
    cpu = torch.device("cpu")
    assert not chosen(cpu, torch.bfloat16, 224, repeats=True)
    monkeypatch.setattr(kernels, "runs_on", lambda device: True)
    assert chosen(cpu, torch.bfloat16, 224, repeats=False)
    assert not chosen(cpu, torch.float64, 224, repeats=True)
    assert not chosen(cpu, torch.float32, MAX_SLOTS + 1, repeats=True)
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen(cpu, torch.bfloat16, 224, repeats=True)
        assert not chosen(cpu, torch.bfloat16, 224, repeats=False)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def counted_launches(monkeypatch):
    """Let heads choose kernels here too; give the names of those that were called."""
    called = []

    def watch(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: called.append(name) or original(*args))

    monkeypatch.setattr(kernels, "runs_on", lambda device: True)
    for module in (class_full, shortlist):
        monkeypatch.setattr(module, "at_once", lambda *_: False)
    watch(sys.modules[slot_loss.__module__], "slot_loss")
    watch(own_rows, "forward")
    watch(own_rows, "backward")
    return called


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "launched"),
    [("grouped", {"slot_loss"}), ("class_full", {"forward", "backward"}), ("shortlist", {"forward", "backward"})],
)
def test_heads_with_kernels_equal_heads_without(name, launched, autocast, counted_launches, monkeypatch):
    own = {"own_shortlist": True, "shortlist_size": 20}
    head = head_of(name, 103, 9, torch.float32, width=16, **own).to(DEVICE)
    hidden, targets = batch_of(103, 60, dtype=torch.float32, width=16)
    states, targets = hidden.detach().to(DEVICE).requires_grad_(), targets.to(DEVICE)

    def step(head, states):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
            loss = head.loss(states, targets).nll
        return [loss.detach(), *torch.autograd.grad(3 * loss, [states, *head.parameters()], allow_unused=True)]

    ours = step(head, states)
    compiled = step(torch.compile(head, backend="aot_eager", fullgraph=True), states) if not autocast else ours
    assert set(counted_launches) == launched
    monkeypatch.setattr(kernels, "runs_on", lambda device: False)
    eager = step(head, states)
    truth = step(head.double(), states.detach().double().requires_grad_()) if not autocast else eager
    for found in (ours, compiled):
        if autocast:
            torch.testing.assert_close(found, eager, rtol=0.05, atol=0.02)
        else:
            assert_as_near(found, eager, truth)


COMPILE = """
import json, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from grouped_lm.heads.losses.kernels import own_rows, slot_loss
from grouped_lm.heads.losses.kernels.tiles import row_tile

def shared(kernel, target, tile, half, more, stages, warps=4):
    fixed = {"PRECISION": "ieee", "WIDEN": False, **tile, **more}
    numbers = {"n_rows", "n_group", "width", "n_slot"}
    whole = {"groups", "slots", "members", "place", "tile_group"}
    short, halves = {"starts", "ends", "tile_first"}, {"table", "d_products", "d_logits"}
    def kind(name):
        if name in fixed: return "constexpr"
        if name in numbers: return "i32"
        return "*" + ("i1" if name == "hits" else "i64" if name in whole else "i32" if name in short
                      else half if name in halves else "fp32")
    names = kernel.arg_names
    signature = {name: kind(name) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*" or n == "width"}
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in fixed.items()}, aligned)
    made = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
    assert made.asm["cubin"]
    return made.metadata.shared

found = {}
for arch, half, n_slot in ((89, "fp32", 1000), (90, "bf16", 224)):
    target = GPUTarget("cuda", arch, 32)
    for kernel, size, more in (
        (slot_loss._slot_rows, slot_loss.TILE, {"KEEP": True}),
        (own_rows._softmax_rows, own_rows.TILE, {"BACKWARD": True}),
    ):
        tile = row_tile(n_slot, size)
        shape = {"ROWS": tile.rows, "SLOTS": tile.slots, "WIDTH": tile.width}
        found[f"{kernel.fn.__name__} {arch}"] = shared(kernel, target, shape, half, more, 2, tile.warps)
    shape = {"ROWS": 32, "SLOTS": own_rows.SLOT_TILE, "WIDTH": own_rows.WIDTH_TILE}
    for kernel in (own_rows._weight_gradient, own_rows._state_gradient):
        found[f"{kernel.fn.__name__} {arch}"] = shared(kernel, target, shape, half, {}, 3)
print(json.dumps(found))
"""
SHARED_BYTES = {"89": 101_376, "90": 232_448}
"""What a program may have on each, by compute capability (NVIDIA CUDA C++ Programming Guide, "Technical Specifications
per Compute Capability")."""


@pytest.mark.skipif(sys.platform != "linux", reason="triton is built for Linux")
def test_kernels_compile_for_gpus_and_fit(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 8
    assert all(0 < size <= SHARED_BYTES[name[-2:]] for name, size in found.items()), found
