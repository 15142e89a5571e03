"""The planner, held against the training loop's own meter, and the mistakes of its users."""

import dataclasses
import json

import pytest
import torch
from grouped_lm.cli.compose.compose import HydraFlags, compose_jobs

from grouped_lm.config import Config, ModelConfig, TokenizerConfig, TrainConfig
from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, parse_head_config, shortlist
from grouped_lm.measure.devices import DEVICES, find_device, parse_bytes
from grouped_lm.measure.live_bytes import KINDS, LiveBytes
from grouped_lm.measure.memory import GIB
from grouped_lm.models.gpt_neo import local_causal_mask
from grouped_lm.plan.fake_step import fake_step, with_shape
from grouped_lm.plan.heads import (
    interpolate,
    largest,
    least_batch,
    least_context,
    measure_points,
    peak_function,
    plan_heads,
)
from grouped_lm.plan.launches import kernel_mode
from grouped_lm.plan.tables import plan_table, summary_table
from grouped_lm.system.console import natural_width
from grouped_lm.train import session
from grouped_lm.train.loop import train

BODIES = {
    "debug": ["model=debug"],
    "gpt2-1m": ["model=gpt2-1m", "model.block_size=64"],
    "neo-1m": ["model=neo-1m", "model.block_size=64", "model.window_size=16"],
}


def compose(overrides):
    return compose_jobs(overrides, HydraFlags())[0][0]


def peak_bytes(config):
    return int(fake_step(config).live.sum(1).max())


def trained_peak_bytes(config, folder, leave_out=False):
    """The peak of the loop. A plan is for a text of all tokens, which leaves no row of the table out."""
    with pytest.MonkeyPatch.context() as patch:
        if not leave_out:
            patch.setattr(session, "leave_out_unused_rows", lambda *_: None)
        return train(config, folder)["memory/peak_tensor_gib"] * GIB


@pytest.mark.parametrize("batch", [2, 6])
@pytest.mark.parametrize("head", ["dense", "grouped"])
@pytest.mark.parametrize("body", BODIES)
def test_predicted_peak_is_that_of_the_loop(body, head, batch, tiny, workdir):
    words = [*tiny, *BODIES[body], f"head={head}", f"train.micro_batch_size={batch}", "train.max_steps=3"]
    config = compose(words)
    assert peak_bytes(config) == pytest.approx(trained_peak_bytes(config, workdir / "run"), rel=0.01)


@pytest.mark.parametrize(
    "words",
    [
        ["head=film", "train.grad_accum_steps=3"],
        ["head=dense", "head.tied=false", "train.micro_batch_size=1"],
        ["head=dense", "train.micro_batch_size=1", "model.block_size=4", "tokenizer=gpt2"],
        ["head=dense", "head.chunk_rows=40"],
        ["head=dense", "head.chunk_rows=64", "tokenizer=gpt2", "train.dtype=bfloat16"],
        ["head=class_full", "tokenizer=gpt2"],
        ["head=class_full", "head.tied=false", "grouping=random"],
        ["head=shortlist", "head.own_shortlist=true", "head.directions=4", "head.shortlist_size=99", "tokenizer=gpt2"],
        ["head=dense", "head.chunk_rows=64", "tokenizer=gpt2"],
        ["head=grouped", "model.dropout=0.1"],
        ["head=grouped", "train.dtype=bfloat16"],
        ["head=grouped", "train.dtype=float16"],
        ["head=grouped", "model.activation_checkpointing=true", "model.n_layer=4", "model.dropout=0.1"],
        ["head=grouped", "model.attention=unfused"],
        ["head=grouped", "model.attention=unfused", "model.body=gpt_neo", "model.window_size=16"],
    ],
    ids=" ".join,
)
def test_settings_that_change_what_is_kept(words, tiny, workdir):
    config = compose([*tiny, "train.max_steps=3", *words])
    assert peak_bytes(config) == pytest.approx(trained_peak_bytes(config, workdir / "run"), rel=0.05)


def test_the_default_head_is_planned_for_a_text_of_all_tokens(tiny, workdir, monkeypatch):
    config = compose([*tiny, "train.max_steps=3", "head=shortlist", "tokenizer=gpt2"])
    planned, few = peak_bytes(config), trained_peak_bytes(config, workdir / "few")
    monkeypatch.setattr(shortlist, "at_once", lambda *_: False)
    assert planned == pytest.approx(trained_peak_bytes(config, workdir / "all"), rel=0.05)
    assert few < planned
    assert trained_peak_bytes(config, workdir / "rows", leave_out=True) < 0.7 * few


def test_chunked_operator_shows_what_it_makes_inside():
    fewer, more = (peak_bytes(compose(["model=debug", "head=dense", f"head.chunk_rows={n}"])) for n in (64, 128))
    assert more - fewer == pytest.approx(64 * 50_257 * 4, rel=0.01)


@pytest.mark.parametrize("body", ["gpt2", "gpt_neo"])
def test_interpolation_finds_the_border_exactly(body):
    config = compose(["model=debug", "tokenizer=bytes", f"model.body={body}", "model.window_size=16"])
    for plan in plan_heads(config, 2**25, DEVICES["t4"])[0]:
        own = config if plan.head == config.head.name else dataclasses.replace(config, head=HEADS[plan.head].schema())
        batch, context = plan.largest_micro_batch_size, plan.longest_block_size
        with kernel_mode(DEVICES["t4"]):
            for shape in ("batch", batch), ("context", context):
                fits, too_large = (peak_bytes(with_shape(own, **{shape[0]: shape[1] + more})) for more in (0, 1))
                assert fits <= 2**25 < too_large


@pytest.mark.parametrize(
    ("head", "batch", "context"), [({"name": "grouped"}, 1, 128), ({"name": "dense", "chunk_rows": 512}, 3, 64)]
)
def test_borders_are_exact_below_a_whole_chunk_of_logits_and_above(head, batch, context):
    body = ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=context)
    made, tokenizer = TrainConfig(micro_batch_size=batch), TokenizerConfig(name="bytes")
    own = Config(model=body, head=parse_head_config(head), train=made, tokenizer=tokenizer)
    _, by_batch, by_context = measure_points(own)
    batch_peak = peak_function(by_batch, least_batch(own), lambda x: fake_step(with_shape(own, batch=x)))
    context_peak = peak_function(by_context, least_context(own), lambda x: fake_step(with_shape(own, context=x)))
    for x in (1, 12):
        assert batch_peak(x) == peak_bytes(with_shape(own, batch=x))
        assert context_peak(40 * x) == peak_bytes(with_shape(own, context=40 * x))


def test_steps_that_do_not_match_are_not_interpolated():
    few, many = (fake_step(compose(["model=debug", "tokenizer=bytes", f"model.n_layer={n}"])) for n in (1, 2))
    assert interpolate({1: few, 2: many}, 3) is None
    assert largest(lambda x: x <= 37, 1000) == 37
    assert largest(lambda x: False, 1000) == 0


def test_a_storage_lives_as_long_as_its_tensors():
    model = torch.nn.Linear(2, 2)
    live = LiveBytes(model)
    live.hold(model.parameters(), "weights")
    with live.watching():
        first = torch.zeros(100)
        view = first[10:]
        del first
        second = view + 1
        del view, second
        torch.zeros(50)
    moments = live.moments()
    assert moments.live.sum(1).tolist()[2:] == [24 + 400, 24 + 760, 24 + 200]
    assert moments.made == 400 + 360 + 200
    assert moments.live[:, KINDS.index("weights")].tolist() == [16, 24, 24, 24, 24]


def test_a_fake_step_leaves_no_trace():
    config = compose(["model=debug", "model.body=gpt_neo", "model.window_size=16", "tokenizer=bytes"])
    state = torch.get_rng_state()
    fake_step(config)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(local_causal_mask(64, 16, torch.device("cpu"))) is torch.Tensor  # no fake one is left in its cache


def test_ratios_cap_and_verdict():
    plans = {p.head: p for p in plan_heads(compose(["model=debug"]), GIB, DEVICES["a100"], tokens=10**9)[0]}
    dense, grouped = plans["dense"], plans["grouped"]
    assert dense.flops_cap == 1 + dense.head_flops_per_token / dense.body_flops_per_token
    assert 1 < grouped.flops_ratio < dense.flops_cap
    assert grouped.memory_ratio == dense.peak_bytes / grouped.peak_bytes
    assert grouped.hours == pytest.approx(10**9 / grouped.tokens_per_sec / 3600)
    assert grouped.helps
    assert sum(dense.parts.values()) == dense.peak_bytes
    assert dense.peak_module == "head"


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * GIB), ("1.5 gib", 3 * GIB // 2), ("16GB", 16 * 10**9), ("1e9", 10**9)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "8 parsecs", "-1GiB", "0", "0GiB", "nan", "GiB"])
def test_no_size(text):
    with pytest.raises(ConfigError, match="--memory must be a size above 0"):
        parse_bytes(text)


def test_devices_give_their_sources():
    assert all(device.source and device.name == name for name, device in DEVICES.items())
    assert find_device("cpu", "float32").flops_per_sec("float32") > 0


def test_command(gvc):
    done = gvc("plan", "model=debug", "--memory", "1GiB", "--device", "h100", "--tokens", "1000000", "--json")
    assert done.code == 0
    plans = json.loads(done.out)
    assert {p["head"] for p in plans["heads"]} | set(plans["unplanned"]) == set(HEADS)
    assert plans["unplanned"] == ["adaptive", "trim"]
    assert plans["memory_bytes"] == GIB
    table = gvc("plan", "tokenizer=bytes", "model=debug", "model.n_embd=256", "--device", "a100")
    assert "\ngrouped: this head will not help you here\n" in table.out
    assert "40.00 GiB of memory" in table.out


def test_cases_24_a_plan_fits_80_columns():
    device = DEVICES["rtx3060"]
    config = compose(["model=debug", "tokenizer=bytes"])
    plans, _ = plan_heads(config, GIB, device)
    table = summary_table(config, plans, GIB, device)
    assert natural_width(table) <= 80 < natural_width(plan_table(config, plans, GIB, device))
    assert [*table.columns[0].cells] == [plan.head for plan in plans]
    assert next(iter(table.columns[1].cells)) == f"{plans[0].peak_bytes / 2**20:,.2f}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "much"], "got 'much'"),
        (["--device", "h1000"], "did you mean h100?"),
        (["--tokens", "0"], "--tokens must be"),
        (["model=gpt3"], "model=gpt3 is not known"),
        (["head.nope=1"], "head.nope"),
    ],
)
def test_mistakes(gvc, words, said):
    done = gvc("plan", *words)
    assert done.code == 2
    assert said in done.err


def test_a_plan_for_a_gpu_has_the_kernels(gvc):
    def head_of(*words):
        values = json.loads(gvc("plan", "model=debug", "tokenizer=gpt2", "--json", *words).out)
        return next(head for head in values["heads"] if head["head"] == "shortlist")

    gpu, cpu = head_of("--device", "h100"), head_of()
    assert gpu["head_launches"] == 11
    assert cpu["head_launches"] > 60
    assert 0 < gpu["head_share"] == cpu["head_share"] < 1


def test_published_sizes_have_their_own_table(gvc):
    plans = json.loads(gvc("plan", "--published", "--json").out)
    dense = {p["model"]: p for p in plans if p["head"] == "dense"}
    assert {(p["n_embd"], p["vocab_size"]) for p in dense.values()} == {
        (640, 262_144),
        (896, 151_936),
        (576, 49_152),
        (768, 50_257),
    }
    for plan in plans:
        assert plan["flops_ratio"] == pytest.approx((1 - plan["head_share"]) / (1 - dense[plan["model"]]["head_share"]))
    assert "64.0% (1.0x)" in gvc("plan", "--published").out


def test_published_sizes_with_a_factorised_embedding_are_planned(gvc):
    outcome = gvc("plan", "--published", "model.embedding=factorised", "train.vocab_parallel=true", "--json")
    assert outcome.code == 0, outcome.err
    assert {"dense", "grouped"} <= {plan["head"] for plan in json.loads(outcome.out)}


@pytest.mark.parametrize(
    "words",
    ["--tokens 100", "--memory 8GiB", "--devices 2", "--nodes 2", "--interconnect nvlink4", "--tokens 9 --nodes 2"],
)
def test_published_sizes_take_no_option_that_they_would_not_use(gvc, words):
    refused = gvc("plan", "--published", *words.split())
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    named = ", ".join(word for word in words.split() if word.startswith("--"))
    assert f"--published shows shares of one step on one device: leave {named} out" in refused.err
