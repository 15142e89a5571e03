"""Claims and verdicts: what follows from evidence whose answer is known, and that nothing follows from nothing."""

import pytest
from made_up import make_evidence, make_run, of_size

from grouped_lm.compare import compare_methods
from grouped_lm.errors import ConfigError
from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import TABLES, read_evidence, write_evidence
from grouped_lm.reproduction.rules import RULES
from grouped_lm.reproduction.verdicts import FAILS, HOLDS, HOLDS_WHERE, NOT_SHOWN, judge

CLAIMS = load_claims()
WORDS = {
    "memory": (HOLDS_WHERE, HOLDS_WHERE),
    "throughput": (HOLDS_WHERE, HOLDS_WHERE),
    "flops": (HOLDS_WHERE, HOLDS_WHERE),
    "on-par-gpt2": (FAILS, HOLDS_WHERE),
    "on-par-neo": (FAILS, HOLDS_WHERE),
    "sqrt-v": (HOLDS, None),
    "group-accuracy": (FAILS, FAILS),
    "group-sign": (FAILS, None),
    "merge-order": (FAILS, None),
    "merge-or-frequency": (FAILS, None),
    "merge-or-random": (HOLDS_WHERE, None),
    "merge-or-clustered": (HOLDS_WHERE, None),
    "scale-and-shift": (FAILS, HOLDS_WHERE),
    "vocabularies": (HOLDS, HOLDS),
    "rare-tokens": (FAILS, HOLDS_WHERE),
    "group-size-texts": (HOLDS_WHERE, None),
    "memory-grid": (HOLDS, None),
    "other-text": (FAILS, HOLDS_WHERE),
    "group-size-tasks": (NOT_SHOWN, None),
}


def nothing():
    return {name: [] for name in TABLES}


def answers_to(evidence):
    return {answer.claim.id: answer for answer in judge(CLAIMS, evidence)}


def losses(evidence, *kinds, **others):
    """Evidence with other main runs."""
    return nothing() | {"runs": [make_run(kind, seed, **others) for kind in kinds for seed in evidence]}


def test_every_verdict_of_a_whole_reproduction():
    found = answers_to(make_evidence())
    words = {key: (a.verdict.word, a.ours and a.ours.word) for key, a in found.items()}
    assert words == WORDS


def test_verdicts_come_back_from_csv_the_same(tmp_path):
    evidence = make_evidence()
    write_evidence(evidence, tmp_path / "data")
    back = read_evidence(tmp_path)
    assert [a.verdict for a in judge(CLAIMS, back)] == [a.verdict for a in judge(CLAIMS, evidence)]


def test_nothing_holds_for_lack_of_data():
    for answer in judge(CLAIMS, nothing()):
        assert {answer.verdict.word, answer.ours.word if answer.ours else NOT_SHOWN} == {NOT_SHOWN}
        assert answer.verdict.why


@pytest.mark.parametrize("table", ["runs", "deciles", "order", "bench-memory", "bench-steps", "bench-vocab"])
def test_without_a_table_nothing_holds_that_did_not_before(table):
    before = answers_to(make_evidence())
    for key, answer in answers_to(make_evidence() | {table: []}).items():
        assert answer.verdict.word in (NOT_SHOWN, before[key].verdict.word)


def test_embedded_stories_decide_nothing_about_quality():
    evidence = make_evidence()
    for row in evidence["runs"]:
        row["data"] = "tinytales"
    for row in evidence["order"]:
        row["data"] = "tinytales"
    found = answers_to(evidence)
    quality = ("no_worse", "group_accuracy", "accuracy_sign", "rare_tokens", "size_no_worse", "size_tasks")
    for answer in found.values():
        if answer.claim.rule in (*quality, "order_follows_frequency"):
            assert answer.verdict.word == NOT_SHOWN, answer.claim.id
    assert found["sqrt-v"].verdict.word == HOLDS  # bytes are bytes


def test_parity_is_that_of_gvc_eval():
    evidence = make_evidence()
    verdict = answers_to(evidence)["on-par-gpt2"].verdict
    sides = [
        [
            r["val/loss"]
            for r in evidence["runs"]
            if r["head"] == head and r["run"].startswith("main/") and "gpt2-t" in r["run"] and r["state"] == "complete"
        ]
        for head in ("dense", "grouped")
    ]
    found = compare_methods(*sides)
    assert (verdict.value, verdict.low, verdict.high) == (found.difference, found.low, found.high)
    assert found.verdict == "not on par"
    assert "3 + 3 seeds" in verdict.interval
    assert "1 more run ended in failure" in verdict.why
    assert len(verdict.runs) == 6


def test_one_seed_is_no_verdict():
    for seeds in ([0], [0, 1]):
        verdict = answers_to(losses(seeds, "dense", "grouped"))["on-par-gpt2"].verdict
        assert (verdict.word == NOT_SHOWN) == (len(seeds) == 1)
    assert "One seed" in answers_to(losses([0], "dense", "grouped"))["on-par-gpt2"].verdict.why


def test_parity_of_the_papers_own_body_holds_outright():
    assert answers_to(losses([0, 1, 2], "dense", "shortlist"))["on-par-gpt2"].ours.word == HOLDS_WHERE
    large = answers_to(losses([0, 1, 2], "dense", "shortlist", model="gpt2-33m"))["on-par-gpt2"].ours
    assert large.word == HOLDS
    assert large.why.startswith("Better")


def test_runs_that_differ_in_more_than_the_head_are_not_compared():
    evidence = losses([0, 1], "dense", "grouped")
    for row in evidence["runs"]:
        if row["head"] == "grouped":
            row["optim.lr"] = 0.003
    assert answers_to(evidence)["on-par-gpt2"].verdict.word == NOT_SHOWN


def test_several_seeds_speak_before_a_longer_single_run():
    evidence = losses([0, 1], "dense", "grouped")
    evidence["runs"] += [
        make_run(k, 0, step="long") | {"train.max_steps": 3000, "val/loss": 3.0} for k in ("dense", "grouped")
    ]
    assert answers_to(evidence)["on-par-gpt2"].verdict.word == FAILS


def test_predictions_count_only_where_real_steps_bear_them_out():
    evidence = make_evidence()
    for row in evidence["bench-memory"]:
        if row["part"] == "truth" and row["head"] == "dense":
            row["prediction_error"] = 0.3
    assert answers_to(evidence)["memory"].verdict.word == NOT_SHOWN
    evidence["bench-memory"] = [row for row in evidence["bench-memory"] if row["part"] != "truth"]
    assert answers_to(evidence)["memory"].verdict.word == NOT_SHOWN


def test_memory_says_where_it_holds():
    verdict = answers_to(make_evidence())["memory"].verdict
    assert verdict.where == "the body is neo-33m or gpt2-33m, fused attention, batch 47 and more"
    assert verdict.value == 3.55
    evidence = make_evidence()
    for row in evidence["bench-memory"]:
        if row["part"] == "claim":
            row["memory_ratio"] = min(row["memory_ratio"], 3.0)
            row.pop("batch_at_claim", None)
    assert answers_to(evidence)["memory"].verdict.word == FAILS


def test_runs_on_a_gpu_speak_before_predictions():
    evidence = make_evidence()
    for head, peak, rate in (("dense", 20.0, 100.0), ("grouped", 5.0, 250.0)):
        for seed in range(2):
            row = make_run(head, seed, step="gpu", model="gpt2-33m")
            row |= {"train.micro_batch_size": 32, "memory/peak_gpu_gib": peak, "throughput/tokens_per_sec": rate}
            if head == "dense":
                row["head_options"] = "bias=False tied=True"
            evidence["runs"].append(row)
    found = answers_to(evidence)
    assert found["memory"].verdict.value == 4.0
    assert found["throughput"].verdict.value == 2.5
    assert found["throughput"].verdict.word == FAILS


def test_a_sweep_of_few_sizes_does_not_show_the_least():
    sizes = [of_size(size, 0) for size in (128, 224, 448)]
    assert answers_to(nothing() | {"runs": sizes})["sqrt-v"].verdict.word == NOT_SHOWN
    off = [of_size(size, 0) for size in (64, 128, 224, 448, 1024)]
    for row in off:
        row["memory/peak_head_gib"] = 0.001 * abs(row["group_size"] - 1024) + 1
    assert answers_to(nothing() | {"runs": off})["sqrt-v"].verdict.word == FAILS


def test_tasks_at_chance_say_nothing():
    runs = [of_size(size, seed) for size in (224, 448) for seed in range(2)]
    for run in runs:
        run |= {"task/choice_accuracy": 0.25, "task/cloze_accuracy": 0.0}
    verdict = answers_to(nothing() | {"runs": runs})["group-size-tasks"].verdict
    assert verdict.word == NOT_SHOWN
    assert "chance" in verdict.why
    for run in runs:
        run |= {"task/choice_accuracy": 0.9 if run["group_size"] == 448 else 0.5}
    assert answers_to(nothing() | {"runs": runs})["group-size-tasks"].verdict.word == FAILS


def test_every_claim_has_a_rule_and_nobody_else():
    assert {claim.rule for claim in CLAIMS.claims} == set(RULES)
    known = set(CLAIMS.methods)
    for claim in CLAIMS.claims:
        named = [claim.options.get(key) for key in ("first", "second", "method", "dense")] + claim.options.get(
            "methods", []
        )
        assert {name for name in named if name} <= known, claim.id


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: claim\n    quote: null", "kind: rumour\n    quote: null", "must be one of claim, question, check"),
        ("    threshold: 5.0\n", "", "threshold"),
        ("  - id: flops\n", "  - id: flops\n    colour: red\n", "colour"),
        ("  - id: flops\n", "  - id: memory\n", "memory twice"),
    ],
)
def test_a_claim_that_is_none(old, new, said):
    from importlib.resources import files

    text = (files("grouped_lm.conf") / "claims.yaml").read_text()
    assert old in text
    with pytest.raises(ConfigError, match=said):
        load_claims(text.replace(old, new))
