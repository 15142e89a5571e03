"""What is measured, and the check that exact implementations are exact."""

import math

import pytest
import torch
from torch import nn

from grouped_lm.bench import implementations
from grouped_lm.bench.checks import check_columns, error_of, refuse_inexact
from grouped_lm.bench.heads import fitting, floor_bytes, memory_columns
from grouped_lm.bench.implementations import (
    IMPLEMENTATIONS,
    Implementation,
    PaddedPeerHead,
    all_implementations,
    choose,
    plain_implementation,
)
from grouped_lm.bench.timing import Place
from grouped_lm.bench.variants import Variant, load_variant
from grouped_lm.bench.workload import draw_ids, zipf_counts
from grouped_lm.errors import ConfigError, InexactError
from grouped_lm.heads import HEADS, HeadLoss
from grouped_lm.heads.losses import kernels

N, D, V = 48, 8, 700


def of_head(name, **settings):
    """Return the plain implementation of a head that has no variant."""
    return Implementation(variant=Variant(name="x", label="x", description="", head={"name": name, **settings}))


def test_every_registered_head_takes_part():
    known = all_implementations()
    assert {i.variant.head["name"] for i in known} == set(HEADS)
    assert len({i.name for i in known}) == len(known) == len(IMPLEMENTATIONS)


def test_a_new_head_takes_part_with_its_defaults(monkeypatch):
    monkeypatch.setitem(HEADS, "wider", HEADS["grouped"])
    assert (all_implementations()[-1].name, plain_implementation("x", "wider").variant.name) == ("wider", "wider")


def test_choice_by_beginnings_of_names_always_with_dense():
    assert [c.name for c in choose(["grouped", "adaptive, tu"], print)] == ["dense", "grouped", "adaptive, tuned"]
    own = [c.name for c in choose(["shortlist-own-2048"], print)]
    assert own == ["dense", "shortlist, own 2,048, 4 directions"]
    with pytest.raises(ConfigError, match=r"competitors must be variants or begin like one of dense, .*, got 'nobody'"):
        choose(["nobody"], print)


def test_an_older_torch_leaves_out_what_it_lacks(monkeypatch):
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy")
    said: list[str] = []
    names = [c.name for c in choose(["dense, chunked"], said.append)]
    assert names == ["dense", "dense, chunked, tuned"]
    assert said == [
        f"dense, chunked, torch's default is left out: torch {torch.__version__} has no linear_cross_entropy"
    ]


def test_a_package_that_is_missing_is_said_in_one_line(monkeypatch):
    absent = Implementation(variant=load_variant("dense"), how="absent", package="no_such_package")
    monkeypatch.setattr(implementations, "IMPLEMENTATIONS", (absent,))
    said = []
    assert absent.name not in [c.name for c in choose([], said.append)]
    assert said == ["dense, absent is left out: no-such-package is not installed (pip install 'grouped-lm[bench]')"]


@pytest.mark.parametrize("vocab_size", [700, 768])
def test_padding_of_a_peer_changes_neither_loss_nor_gradients(vocab_size):
    class Peer(PaddedPeerHead):
        multiple = 256

        def padded_nll(self, states, weight, targets):
            assert len(weight) == 768
            return nn.functional.cross_entropy(states @ weight.T, targets, ignore_index=-100)

    torch.manual_seed(0)
    wte = nn.Parameter(0.1 * torch.randn(vocab_size, D))
    hidden, targets = torch.randn(N, D, requires_grad=True), draw_ids(zipf_counts(vocab_size), N, 0)
    targets[::5] = -100
    peer = Implementation(variant=load_variant("dense"), head_class=Peer)
    loss = peer.build({}, zipf_counts(vocab_size), wte)(hidden, targets).nll
    exact = nn.functional.cross_entropy(hidden @ wte.T, targets, ignore_index=-100)
    torch.testing.assert_close(loss, exact)
    for mine, other in zip(*(torch.autograd.grad(x, [hidden, wte]) for x in (loss, exact)), strict=True):
        torch.testing.assert_close(mine, other)
    assert peer.padding(vocab_size) == ("V + 68, D + 8" if vocab_size == 700 else "")


def test_what_a_gpu_cannot_run_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    said: list[str] = []
    choose(["dense, QuACK", "dense, Liger SM90"], said.append, "cuda", "bfloat16")
    assert said == [
        "dense, Liger SM90 is left out: it needs compute capability 9.0, this GPU has 8.9",
        "dense, QuACK is left out: it needs compute capability 9.0 or 10.0 or 10.3, this GPU has 8.9",
    ]
    quack = next(i for i in IMPLEMENTATIONS if i.name == "dense, QuACK")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    assert quack.why_left_out("cuda", "float32") == "it needs dtype=bfloat16, got float32"
    hopper = next(i for i in IMPLEMENTATIONS if i.name == "dense, Liger SM90")
    heads = [i for i in all_implementations() if i.name in ("dense", "dense, compiled")]
    assert list(fitting([*heads, hopper], 4096, True)) == [*heads, hopper]
    assert list(fitting([*heads, hopper], 1000, False)) == heads[:1]


@pytest.mark.parametrize("implementation", [i for i in IMPLEMENTATIONS if not i.compiled], ids=lambda i: i.name)
def test_every_option_builds_and_dense_ones_are_exact(implementation):
    if implementation.package or implementation.captured:
        pytest.skip("compiles for ten seconds; `gvc bench` runs it")
    torch.manual_seed(0)
    wte = nn.Parameter(0.1 * torch.randn(V, D))
    counts = zipf_counts(V)
    hidden, targets = torch.randn(N, D), draw_ids(counts, N, 0)
    exact = nn.functional.cross_entropy(hidden @ wte.T, targets).item()
    for option in implementation.options:
        loss = implementation.build(option, counts, wte)(hidden, targets).nll.item()
        if implementation.variant.name == "dense":
            assert loss == pytest.approx(exact, abs=1e-5)
        else:
            assert 0 < loss < 30


def test_some_take_part_on_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    everywhere, there = ({c.name for c in choose(["grouped", "dense, chunked, t"], print, d)} for d in ("cpu", "cuda"))
    assert there - everywhere == {"grouped, no kernel", "grouped, compiled", "grouped, compiled, CUDA graphs"}
    tuned = next(c for c in IMPLEMENTATIONS if c.name == "dense, chunked, tuned")
    assert {"chunk_rows": 4096} in tuned.options_on("cuda")
    assert {"chunk_rows": 4096} not in tuned.options_on("cpu")


def test_an_implementation_may_leave_the_kernels_out():
    given = torch.device("cpu"), torch.float32, 16
    with kernels.mode("on"):
        with Implementation(variant=load_variant("grouped"), kernels=False).running():
            assert not kernels.chosen(*given)
        assert kernels.chosen(*given)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["dense", "grouped", "shortlist", "sampled"])
def test_a_head_that_is_not_what_it_says_is_found(name, dtype, monkeypatch):
    torch.manual_seed(0)
    implementation, place = of_head(name), Place(torch.device("cpu"), dtype, 1)
    head = implementation.build({}, zipf_counts(V), nn.Parameter(0.1 * torch.randn(V, D)))
    targets = draw_ids(zipf_counts(V), N, 0)
    row = {"head": name, "n_tokens": N, "n_embd": D, "device": "cpu", "dtype": dtype}
    row |= check_columns(implementation, head, targets, place)
    assert row["exact"]
    refuse_inexact([row], {name})
    loss = type(head).loss
    monkeypatch.setattr(type(head), "loss", lambda self, h, *args, **more: loss(self, 1.1 * h, *args, **more))
    row |= check_columns(implementation, head, targets, place)
    assert row["grad_error"] > 0.09
    refuse_inexact([row], set())
    with pytest.raises(InexactError, match=f"{name} is not exact at N 48, D 8, device=cpu dtype={dtype}: loss off by "):
        refuse_inexact([row], {name})


def check(implementation, n_tokens=N, spoil=lambda head: None):
    torch.manual_seed(0)
    head = implementation.build({}, zipf_counts(V), nn.Parameter(0.1 * torch.randn(V, D)))
    spoil(head)
    targets = draw_ids(zipf_counts(V), n_tokens, 0)
    return check_columns(implementation, head, targets, Place(torch.device("cpu"), "float32", 1))


def test_gradients_that_are_not_finite_are_not_exact():
    biased = of_head("dense", bias=True)
    row = check(biased, spoil=lambda head: head.bias.register_hook(lambda gradient: gradient * math.nan))
    assert (row["grad_error"], row["exact"]) == (math.inf, False)
    row = check(biased, spoil=lambda head: head.bias.data.fill_(math.nan))
    assert (row["nll_error"], row["exact"]) == (math.inf, False)
    nothing, ones, bad = torch.zeros(2), torch.ones(2), torch.tensor([0.0, math.nan])
    assert [error_of(bad, nothing), error_of(bad, ones), error_of(bad, None)] == [math.inf] * 3
    assert [error_of(None, ones), error_of(ones, None), error_of(ones, nothing)] == [1, 1, 1]
    assert [error_of(None, None), error_of(nothing, None), error_of(ones.to_sparse(), ones)] == [0, 0, 0]


def test_what_is_checked_is_what_is_run():
    class Miscompiled(Implementation):
        def forward(self, module):
            return lambda *given: HeadLoss(nll=1.1 * module(*given).nll)

    assert not check(Miscompiled(variant=load_variant("dense")))["exact"]


@pytest.mark.parametrize("from_row", [256, 899])
def test_rows_behind_the_first_chunk_are_checked(from_row, monkeypatch):
    implementation, loss = of_head("grouped"), HEADS["grouped"].head.loss
    assert check(implementation, 1200)["exact"]
    scale = torch.ones(1200, 1)
    scale[from_row:] = 1.1
    monkeypatch.setattr(HEADS["grouped"].head, "loss", lambda self, h, *args: loss(self, scale * h, *args))
    assert not check(implementation, 1200)["exact"]


def test_only_variants_run_as_their_config_says_can_be_named():
    by_text = plain_implementation("vocab.heads", "shortlist")
    assert [by_text.grouping_config(text).name for text in (True, False)] == ["brown", "frequency"]
    for name in ("dense, chunked, tuned", "dense, compiled", "nobody", "bpe-4096"):
        with pytest.raises(ConfigError, match=f"vocab.heads must be one of dense, .*, trim, got '{name}'"):
            plain_implementation("vocab.heads", name)
    by_count = next(i for i in IMPLEMENTATIONS if i.name == "class_full, by count")
    assert by_count.grouping_config(has_text=True).name == "frequency"


def test_targets_are_as_frequent_as_the_text_says():
    counts = torch.tensor([0, 6, 3, 0, 1])
    ids = draw_ids(counts, 20_000, 1)
    assert (ids.bincount(minlength=5) / 20_000).tolist() == pytest.approx([0, 0.6, 0.3, 0, 0.1], abs=0.02)


def test_peak_and_floor_of_a_dense_head_counted_by_hand():
    wte = nn.Parameter(torch.randn(V, D))
    tied, untied = (of_head("dense", tied=tied).build({}, zipf_counts(V), wte) for tied in (True, False))
    targets = torch.arange(N)
    states, logits, table = 2 * N * D, N * V, 2 * V * D
    one, two = (memory_columns(head, targets, wte) for head in (tied, untied))
    assert one["floor_bytes"] == floor_bytes(N, D, 0, V) == 4 * (states + logits)
    assert two["floor_bytes"] == 4 * (states + logits + table)
    assert (one["tied_table_bytes"], two["tied_table_bytes"]) == (4 * table, 0)
    assert one["peak_bytes"] == two["peak_bytes"]
    assert two["params_own"] == V * D
    assert one["peak_over_floor"] == (one["peak_bytes"] - 4 * table) / one["floor_bytes"] > 1.5
    compiled = torch.compile(tied, backend="eager")
    assert memory_columns(tied, targets, wte, compiled) == one


def test_options_come_on_top_of_the_variant():
    config = plain_implementation("x", "shortlist-own-2048").config({"tied": False})
    assert (config.directions, config.tied) == (4, False)
