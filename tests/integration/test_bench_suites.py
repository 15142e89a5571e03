"""Every suite from command to rows, on shapes of a second; and mistakes, which end in one line."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from grouped_lm.bench.decode import models_to_time
from grouped_lm.bench.implementations import plain_implementation
from grouped_lm.bench.memory import config_of
from grouped_lm.bench.settings import BenchConfig, DecodeGrid, StepsGrid, VocabGrid
from grouped_lm.bench.steps import CAP, with_shares
from grouped_lm.bench.workload import Workload, zipf_counts
from grouped_lm.config import ModelConfig, TokenizerConfig


@pytest.fixture
def bench(gvc, texts):
    def call(suite, *words):
        data = ["tokenizer=bytes", "data=text", f"data.train={texts['train']}", f"data.valid={texts['valid']}"]
        meter = ["meter.max_rounds=1", "meter.max_dropped=0"]
        return gvc("bench", suite, *data, *meter, "--dir", "cells", "--json", *words)

    return call


def rows_of(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_heads_with_csv_and_plots(bench):
    words = ["heads.n_tokens=[32]", "heads.n_embd=[8]", "heads.shapes=[[16,8,300]]", "competitors=[class,short]"]
    rows = rows_of(bench("heads", *words, "--out", "results"))
    assert {(row["n_tokens"], row["vocab_size"]) for row in rows} == {(32, 257), (16, 300)}
    assert {"dense", "class_full", "shortlist, mean rows"} <= {row["head"] for row in rows}
    assert rows[0]["speedup"] == rows[0]["memory_ratio"] == 1
    assert all(row["commit"] and row["machine"] and row["threads"] == 1 for row in rows)
    assert all(row["exact"] and (row["device"], row["dtype"]) == ("cpu", "float32") for row in rows)
    assert rows[0]["command"].startswith("gvc bench heads --grid quick tokenizer=bytes")
    for name in ("bench-heads-quick.csv", "bench-heads-time-n32-d8-quick.svg", "bench-heads-memory-n32-d8-quick.png"):
        assert (Path("results") / name).stat().st_size > 100


def test_steps_beside_the_cap(bench):
    words = ["steps.models=[debug]", "steps.micro_batch_size=2", "steps.block_size=16", "dtype=bfloat16", "repeats=2"]
    rows = {row["head"]: row for row in rows_of(bench("steps", *words, "competitors=[grouped,adaptive]"))}
    assert rows[CAP]["share_of_cap"] == rows["dense"]["over_dense"] == 1
    assert rows[CAP]["head_flops_share"] == 0 < rows["grouped"]["head_flops_share"]
    assert rows["grouped"]["over_dense"] == pytest.approx(rows["dense"]["ms"] / rows["grouped"]["ms"])
    assert "cutoffs=" in rows["adaptive, tuned"]["tried"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and this would measure on it")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench heads --grid gpu", "device=cuda, but torch sees no CUDA device here: device=cpu will run"),
        ("bench steps device=cuda", "device=cuda, but torch sees no CUDA device here: device=cpu will run"),
        ("bench heads heads.shapes=[[1,2]]", "heads.shapes must have [N, D, V] in each place, got [1, 2]"),
        ("doctor --gpu", "torch sees no CUDA device here: `gvc doctor` says what this machine has"),
    ],
)
def test_without_a_gpu_one_line_says_so(gvc, words, message, workdir):
    done = gvc(*words.split())
    assert (done.code, done.out) == (2, "")
    assert done.err == f"gvc: error: {message}\n"
    assert list(workdir.iterdir()) == []


def test_shares_against_the_best_rival():
    times = {CAP: 1.0, "dense": 8.0, "dense, chunked, a": 6.0, "dense, chunked, b": 5.0, "grouped": 2.0}
    rows = {r["head"]: r for r in with_shares([{"head": h, "ms": t, "flops_per_token": t} for h, t in times.items()])}
    grouped = rows["grouped"]
    assert (grouped["share_of_cap"], grouped["over_dense"], grouped["over_best_chunked"]) == (0.5, 4.0, 2.5)
    assert grouped["over_best_adaptive"] is None
    assert grouped["flops_fewer_than_dense"] == 4.0


def test_memory_parts(bench):
    words = ["truth_models=[debug]", "truth_batches=[2]", "truth_block_size=16", "claim_models=[debug]"]
    words += ["claim_block_size=64", "claim_ratio=1.1", "fit_models=[debug]", "limit_gib=0.01", "grid_model=debug"]
    words += ["grid_batches=[1,3]", "grid_block_sizes=[32]", "claim_heads=[grouped,shortlist]"]
    rows = rows_of(bench("memory", "competitors=[grouped]", *(f"memory.{word}" for word in words)))
    truth = [row for row in rows if row["part"] == "truth"]
    assert [row["head"] for row in truth] == ["dense", "grouped", "shortlist, mean rows"]
    compared = [row for row in rows if row.get("measured_bytes") and row.get("predicted_bytes")]
    assert len(compared) == 3 + 2 + 8
    by_batch = [row for row in compared if row["head"] == "shortlist, mean rows"]
    assert all(0 < row["prediction_error"] < 0.15 for row in by_batch)  # planned for a text with every token
    assert all(abs(row["prediction_error"]) < 0.05 for row in compared if row not in by_batch)
    claims = [row for row in rows if row["part"] == "claim"]
    others = [row for row in claims if row.get("head") == "shortlist, mean rows"]
    claims = [row for row in claims if row.get("head") is None]
    assert len(others) == len(claims)
    assert all(a["dense_bytes"] == b["dense_bytes"] for a, b in zip(others, claims, strict=True))
    assert all(a["memory_ratio"] != b["memory_ratio"] for a, b in zip(others, claims, strict=True))
    fused, unfused = (row["dense_bytes"] for row in claims if row["micro_batch_size"] == 80)
    assert fused < unfused
    for row in claims:
        assert 1 < row["flops_ratio"] < row["flops_cap"]
        if row["batch_at_claim"]:
            assert (row["memory_ratio"] >= 1.1) == (row["micro_batch_size"] >= row["batch_at_claim"])
    dense, grouped = (row for row in rows if row["part"] == "fit")
    assert dense["measured_bytes"] < 0.0105 * 2**30
    assert grouped["memory_ratio"] == dense["measured_bytes"] / grouped["measured_bytes"]


def test_decode_of_fresh_heads_and_of_runs(bench, gvc, tiny):
    words = ["decode.model=debug", "decode.batches=[2]", "decode.context=4", "competitors=[grouped]"]
    rows = rows_of(bench("decode", *words))
    assert {(row["head"], row["way"]) for row in rows} == {
        (h, w) for h in ("dense", "grouped") for w in ("plain", "greedy", "top-p")
    }
    assert all(0 < row["head_ms"] < row["ms"] for row in rows)
    gvc("train", *tiny, "head=dense", "train.max_steps=1", "hydra.run.dir=one")
    rows = rows_of(bench("decode", *words, "decode.runs=[one]"))
    assert {(row["head"], row["head_speedup"]) for row in rows} == {("one", 1.0)}


def test_an_input_longer_than_the_preset_is_measured(bench):
    words = ["steps.models=[debug]", "steps.micro_batch_size=1", "steps.block_size=80"]
    rows = rows_of(bench("steps", *words, "competitors=[low_rank]"))
    assert {row["block_size"] for row in rows} == {80}
    assert {CAP, "dense"} < {row["head"] for row in rows}


def test_decode_of_a_run_reads_its_own_tokenizer_and_its_positions(gvc, tiny):
    assert gvc("train", *tiny, "head=dense", "train.max_steps=1", "hydra.run.dir=own").code == 0
    data = [word for word in tiny if word.startswith("data")]
    words = ["bench", "decode", *data, "decode.batches=[1]", "decode.runs=[own]", "--json"]  # of the tokenizer gpt2
    meter = ["meter.max_rounds=1", "meter.max_dropped=0"]
    (row, *_) = rows_of(gvc(*words, *meter, "decode.context=4", "--dir", "short"))
    assert (row["head"], row["run_head"]) == ("own", "dense")
    refused = gvc(*words, "decode.context=65", "--dir", "long")
    assert (refused.code, refused.out) == (2, "")
    assert "decode.context must be in [2, 64] for decode.runs=own, the run's model.block_size, got 65" in refused.err


@pytest.mark.parametrize(
    ("suite", "sizes"),
    [
        ("steps", {"debug": 80, "gpt2-1m": 80}),
        ("decode", {"debug": 90}),
        ("vocab", {"debug": 70}),
        ("heads", {}),
        ("memory", {}),
    ],
)
def test_bodies_have_positions_for_the_longest_input(suite, sizes):
    settings = BenchConfig(
        steps=StepsGrid(models=["debug", "gpt2-1m"], block_size=80),
        decode=DecodeGrid(model="debug", context=90),
        vocab=VocabGrid(model="debug", block_size=70, excess_model="debug", excess_block_size=60),
    )
    assert settings.block_sizes(suite) == sizes


def test_decode_takes_each_head_once():
    settings = BenchConfig(tokenizer=TokenizerConfig(name="bytes"), competitors=["adaptive", "class_full", "low_rank"])
    work = Workload(settings, {settings.decode.model: ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)})
    work.counts = zipf_counts(work.vocab_size)
    work.train_file = SimpleNamespace(tokens=None)
    assert list(models_to_time(work)) == [
        "dense",
        "class_full",
        "class_full, by count",
        "class_full, untied",
        "adaptive",
        "low_rank, 64",
    ]


@pytest.mark.parametrize(("has_text", "grouping"), [(True, "brown"), (False, "frequency")])
def test_memory_is_that_of_the_variants_own_groups(has_text, grouping):
    head, body = plain_implementation("memory.claim_heads", "shortlist"), ModelConfig()
    assert config_of(Workload(BenchConfig(), {}), body, head, 2, 16, has_text).grouping.name == grouping


def test_vocab_steps_and_losses(bench):
    words = ["model=debug", "excess_model=debug", "vocab_sizes=[300,600]", "excess_vocab_sizes=[50]", "block_size=8"]
    words += ["excess_steps=30", "excess_block_size=16", "limit_gib=0.0007", "heads=[dense,grouped]"]
    words += ["excess_languages=[zipf,markov]", "excess_lr=[0.001,0.01]"]
    rows = rows_of(bench("vocab", *(f"vocab.{word}" for word in words)))
    steps = [row for row in rows if row["part"] == "step"]
    large = next(row for row in steps if row["head"] == "dense" and row["vocab_size"] == 600)
    assert large["predicted_bytes"] > 0.0007 * 2**30
    assert large["measured_bytes"] is None
    assert "ms" not in large
    losses = [row for row in rows if row["part"] == "excess"]
    assert len(losses) == 4
    assert all(row["loss_nats"] > row["entropy_nats"] - 0.2 for row in losses)
    assert all(0 < row["excess_nats"] < 3 for row in losses)
    assert all(row["tried"].count("lr=") == 2 for row in losses)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed"], "SUITE must be one of heads, steps, memory, decode, vocab, got 'speed'"),
        (["heads", "--grid", "huge"], "--grid huge is not known"),
        (["heads", "heads.n_embd=[0]"], "heads.n_embd must be in [1"),
        (["heads", "heads.n_tokns=[1]"], "did you mean heads.n_tokens?"),
        (["heads", "competitors=[nobody]"], "competitors must be variants or begin like one of dense, "),
        (["steps", "steps.models=[gpt9]"], "gpt9"),
        (
            ["memory", "dtype=bfloat16"],
            "memory measures with device=cpu dtype=float32, got cpu and bfloat16: heads and",
        ),
        (["heads", "repeats=0"], "repeats must be in [1"),
        (["heads", "threads=0"], "threads must be in [1"),
        (["vocab", "vocab.heads=[nobody]"], "vocab.heads must be one of dense, "),
        (
            ["vocab", "vocab.heads=['dense, chunked, tuned']"],
            "got 'dense, chunked, tuned'",
        ),
        (["memory", "memory.claim_heads=['dense, compiled']"], "got 'dense, compiled'"),
        (
            ["memory", "memory.claim_heads=[grouped,adaptive]", "memory.claim_models=[debug]"],
            "tokens of a batch or of the text, got 'adaptive'",
        ),
        (["memory", "memory.claim_heads=[trim]"], "tokens of a batch or of the text, got 'trim'"),
        (["vocab", "vocab.excess_languages=[latin]"], "must be one of zipf, markov"),
    ],
)
def test_mistakes(gvc, words, said, workdir):
    done = gvc("bench", *words)
    assert done.code == 2, done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert said in done.err
    assert list(workdir.iterdir()) == []
