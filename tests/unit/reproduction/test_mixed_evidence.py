"""Evidence of several texts, bodies, devices and recipes under one name: none of it is mixed into one verdict."""

import pytest
from made_up import bench_rows, make_evidence, make_run, of_size

from grouped_lm.config import Config, DataConfig
from grouped_lm.heads import GroupedConfig
from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import TABLES
from grouped_lm.reproduction.pictures import bench_pictures
from grouped_lm.reproduction.rules import answer_claims
from grouped_lm.reproduction.tables import method_row
from grouped_lm.reproduction.verdicts import FAILS, HOLDS_WHERE, NOT_SHOWN, matches
from grouped_lm.runs.table import run_labels, run_settings

CLAIMS = load_claims()
DEFAULT = {key.removeprefix("head."): value for key, value in CLAIMS.methods["ours"].match.items() if "head." in key}


def answer(claim, **tables):
    evidence = {name: [] for name in TABLES} | {"order": make_evidence()["order"]} | tables
    return next(one for one in answer_claims(CLAIMS, evidence) if one.claim.id == claim)


def runs_of(*kinds, seeds=(0, 1), **others):
    return [make_run(kind, seed, **others) for kind in kinds for seed in seeds]


def test_two_texts_of_one_label_are_not_compared():
    rows = [row | {"text": row["head"]} for row in runs_of("dense", "grouped", data="prose")]
    verdict = answer("other-text", runs=rows).verdict
    assert (verdict.word, verdict.figure) == (NOT_SHOWN, "-")
    alike = [row | {"text": "a"} for row in rows]
    assert answer("other-text", runs=alike).verdict.word == FAILS
    shorter = [row | ({"text": "b"} if row["head"] == "dense" else {}) for row in alike]
    assert answer("other-text", runs=shorter).verdict.word == NOT_SHOWN


def test_runs_on_parts_of_a_validation_text_have_different_texts():
    whole, part = (Config(head=GroupedConfig(), data=DataConfig(max_valid_tokens=n)) for n in (None, 65536))
    assert run_settings(whole)["text"] != run_settings(part)["text"]


def test_a_text_that_may_not_be_the_counted_one_has_no_floor():
    rows = [row | {"text": text} for text in "ab" for row in runs_of("dense", "grouped", data="prose")]
    verdict = answer("other-text", runs=rows).verdict
    assert verdict.word == NOT_SHOWN
    assert "2 texts are called prose, and not all were counted" in verdict.why
    order = [row for row in make_evidence()["order"] if row["data"] == "prose"]
    counted = [row | {"unigram_nats": nats} for row in order for nats in (9.0, 7.5)]
    assert answer("other-text", runs=rows, order=counted).verdict.word == FAILS
    low = answer("other-text", runs=rows, order=[counted[0], counted[1] | {"unigram_nats": 3.0}]).verdict
    assert "no less than the 3.00 of token frequencies alone" in low.why
    parts = [row | ({"data.max_valid_tokens": 9} if row["text"] == "b" else {}) for row in rows]
    assert answer("other-text", runs=parts).verdict.word == FAILS  # one training text


@pytest.mark.parametrize(
    "other",
    [
        {"train.label_smoothing": 0.1},
        {"model.dropout": 0.3},
        {"optim.warmup_steps": 400},
        {"init_from": "x-1a2b3c"},
        {"grouping.seed": 3},
    ],
)
def test_unlike_runs_are_no_seeds_of_one_method(other):
    rows = runs_of("dense", "grouped", model="gpt2-33m")
    rows = [row | (other if row["head"] == "grouped" and row["seed"] else {}) for row in rows]
    assert "One seed decides nothing" in answer("on-par-gpt2", runs=rows).verdict.why
    alike = [row | (other if row["head"] == "grouped" else {}) for row in rows]
    assert answer("on-par-gpt2", runs=alike).verdict.word == FAILS


def test_settings_that_change_no_loss_split_no_seeds():
    rows = runs_of("dense", "grouped", model="gpt2-33m")
    rows = [row | ({"device": "NVIDIA H200", "train.cuda_graphs": True} if row["seed"] else {}) for row in rows]
    assert answer("on-par-gpt2", runs=rows).verdict.word == FAILS


def test_a_fine_tuned_run_has_a_label():
    scratch, tuned, other = (
        run_labels(Config(head=GroupedConfig(), init_from=path))["init_from"] for path in (None, "a/seed=0", "b/seed=0")
    )
    assert scratch is None
    assert tuned.startswith("seed=0-")
    assert tuned != other


def on_gpu(device, peak, dtype="bfloat16", kind="dense"):
    own = {"device": device, "train.dtype": dtype, "memory/peak_gpu_gib": peak, "memory/peak": peak}
    own |= {"train.micro_batch_size": 32, "throughput/tokens_per_sec": 1000 / peak, "head_options": None}
    return [row | own | {"run": f"{row['run']}-{device}"} for row in runs_of(kind, model="gpt2-33m")]


def test_runs_on_two_devices_are_not_divided():
    rows = [*on_gpu("NVIDIA H200", 4.0, kind="grouped"), *on_gpu("NVIDIA T4", 20.0)]
    for row in rows:
        row |= {"head_options": "bias=False tied=True"} if row["head"] == "dense" else {}
    assert answer("memory", runs=rows).verdict.figure == "-"
    assert answer("throughput", runs=rows).verdict.figure == "-"
    sides = [{row["seed"]: row for row in rows if row["head"] == head} for head in ("grouped", "dense")]
    assert not {"speed_ratio", "memory_ratio"} & method_row(CLAIMS.methods["paper"], *sides).keys()
    alike = [*rows, *(row | {"head_options": "tied=True"} for row in on_gpu("NVIDIA H200", 8.0))]
    verdict = answer("memory", runs=[row for row in alike if row["device"] != "NVIDIA T4"]).verdict
    assert verdict.value == 2.0
    assert verdict.where == "with gpt2-33m, batch 32, on a GPU (NVIDIA H200)"
    other = [row | ({"train.dtype": "float32"} if row["head"] == "dense" else {}) for row in alike]
    assert answer("memory", runs=other).verdict.figure == "-"


def test_steps_on_a_gpu_are_called_so_and_not_mixed_with_those_on_a_cpu():
    gpu = {"device": "cuda", "dtype": "bfloat16", "machine": "NVIDIA H200, CUDA 13.0, 16 CPUs"}
    steps = [row | {"model": "gpt2-33m", "ms": row["ms"] / 10} | gpu for row in bench_rows()["bench-steps"]]
    steps = [row | {key: row[key] / 10 for key in ("ms_q1", "ms_q3")} for row in steps if row["ms"] > 9]
    verdict = answer("throughput", **{"bench-steps": steps}).verdict
    assert "tokens, a GPU (NVIDIA H200), bfloat16" in verdict.why
    assert "CPU thread" not in verdict.why
    cpu = [row | {"device": "cpu", "dtype": "float32", "machine": "AMD EPYC, 2 CPUs"} for row in steps]
    assert "4 x 128 tokens, 1 CPU thread." in answer("throughput", **{"bench-steps": cpu}).verdict.why
    mixed = [row for row in cpu if row["head"] == "dense"] + [row for row in steps if row["head"] != "dense"]
    assert answer("throughput", **{"bench-steps": mixed}).verdict.word == NOT_SHOWN


def test_vocabularies_are_those_of_one_body_and_batch():
    full = [row | {"model": "gpt2-8m", "micro_batch_size": 8} for row in bench_rows()["bench-vocab"]]
    quick = [row | {"predicted_bytes": 7} for row in bench_rows()["bench-vocab"] if row["vocab_size"] < 1e6]
    verdict = answer("vocabularies", **{"bench-vocab": full + quick}).verdict
    assert verdict == answer("vocabularies", **{"bench-vocab": full}).verdict
    assert "with gpt2-8m, 8 x 128 tokens" in verdict.why
    largest = [row for row in full if row["vocab_size"] == 1_000_000]
    assert answer("vocabularies", **{"bench-vocab": largest + quick}).verdict.value == pytest.approx(1.0)
    pictures = {one.name: one for one in bench_pictures(CLAIMS, make_evidence() | {"bench-vocab": full + quick})}
    assert "gpt2-8m, 8 x 128 tokens" in pictures["vocab-memory"].svg


@pytest.mark.parametrize("option", ["inner_scale", "second_order"])
def test_variants_of_the_default_are_not_the_default(option):
    ours = CLAIMS.methods["ours"]
    (row,) = runs_of("shortlist", seeds=[0])
    assert matches(row, ours)  # of a table that is older than the options
    assert matches(row | {"head_options": f"{row['head_options']} {option}=False"}, ours)
    assert not matches(row | {"head_options": f"{row['head_options']} {option}=True"}, ours)


def test_a_sweep_of_sizes_is_one_recipe():
    rows = [of_size(size, 0) for size in (64, 128, 224, 448, 1024)]
    assert answer("sqrt-v", runs=rows).verdict.word == HOLDS_WHERE
    assert answer("sqrt-v", runs=[row | {"text": str(row["group_size"])} for row in rows]).verdict.word == NOT_SHOWN
