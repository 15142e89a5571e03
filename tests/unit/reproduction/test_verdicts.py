"""Claims and verdicts: what follows from evidence whose answer is known, and that nothing follows from nothing."""

import re

import pytest
from made_up import make_evidence, make_run, of_size

from grouped_lm.errors import ConfigError
from grouped_lm.evaluate.significance import compare_methods
from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import TABLES, read_evidence, write_evidence
from grouped_lm.reproduction.page import code_html, render_page
from grouped_lm.reproduction.report import make_report, report_markdown
from grouped_lm.reproduction.rules import RULES, answer_claims
from grouped_lm.reproduction.verdicts import FAILS, HOLDS, HOLDS_WHERE, NOT_SHOWN

CLAIMS = load_claims()
WORDS = {
    "memory": (HOLDS_WHERE, HOLDS_WHERE),
    "throughput": (HOLDS_WHERE, HOLDS_WHERE),
    "flops": (HOLDS_WHERE, HOLDS_WHERE),
    "on-par-gpt2": (FAILS, HOLDS_WHERE),
    "on-par-neo": (FAILS, HOLDS_WHERE),
    "sqrt-v": (HOLDS_WHERE, None),
    "group-accuracy": (FAILS, FAILS),
    "group-sign": (FAILS, None),
    "merge-order": (FAILS, None),
    "merge-or-frequency": (FAILS, None),
    "merge-or-random": (HOLDS_WHERE, None),
    "merge-or-clustered": (HOLDS_WHERE, None),
    "scale-and-shift": (FAILS, HOLDS_WHERE),
    "scale-and-shift-states": (FAILS, None),
    "on-par-film": (FAILS, None),
    "vocabularies": (HOLDS_WHERE, HOLDS_WHERE),
    "rare-tokens": (FAILS, HOLDS_WHERE),
    "group-size-texts": (HOLDS_WHERE, None),
    "memory-grid": (HOLDS_WHERE, None),
    "other-text": (FAILS, HOLDS_WHERE),
    "group-size-tasks": (NOT_SHOWN, None),
}


def nothing():
    return {name: [] for name in TABLES}


def answers_to(evidence):
    return {answer.claim.id: answer for answer in answer_claims(CLAIMS, evidence)}


def losses(evidence, *kinds, **others):
    """Evidence with other main runs, on texts that were counted."""
    runs = [make_run(kind, seed, **others) for kind in kinds for seed in evidence]
    return nothing() | {"runs": runs, "order": make_evidence()["order"]}


def test_every_verdict_of_a_whole_reproduction():
    found = answers_to(make_evidence())
    words = {key: (a.verdict.word, a.ours and a.ours.word) for key, a in found.items()}
    assert words == WORDS


def test_verdicts_come_back_from_csv_the_same(tmp_path):
    evidence = make_evidence()
    write_evidence(evidence, tmp_path / "data")
    back = read_evidence(tmp_path)
    assert [a.verdict for a in answer_claims(CLAIMS, back)] == [a.verdict for a in answer_claims(CLAIMS, evidence)]


def test_nothing_holds_for_lack_of_data():
    for answer in answer_claims(CLAIMS, nothing()):
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
    assert found["sqrt-v"].verdict.word == HOLDS_WHERE  # bytes are bytes


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


def test_one_seed_decides_nothing_about_quality():
    evidence = make_evidence()
    evidence["runs"] = [row for row in evidence["runs"] if row["seed"] == 0]
    quality = ("no_worse", "group_accuracy", "accuracy_sign", "rare_tokens", "size_no_worse", "size_tasks")
    for answer in answer_claims(CLAIMS, evidence):
        if answer.claim.rule in quality:
            assert {answer.verdict.word, answer.ours.word if answer.ours else NOT_SHOWN} == {NOT_SHOWN}, answer.claim.id


@pytest.mark.parametrize("floor", [3.0, None])
def test_models_that_know_frequencies_alone_decide_nothing(floor):
    evidence = make_evidence()
    for row in evidence["order"]:
        row.pop("unigram_nats")
        row |= {"unigram_nats": floor} if floor else {}
    quality = ("no_worse", "group_accuracy", "accuracy_sign", "rare_tokens", "size_no_worse")
    for answer in answer_claims(CLAIMS, evidence):
        if answer.claim.rule in quality:
            assert {answer.verdict.word, answer.ours.word if answer.ours else NOT_SHOWN} == {NOT_SHOWN}, answer.claim.id
    why = answers_to(evidence)["on-par-gpt2"].verdict.why
    assert ("3.00 of token frequencies alone" if floor else "nobody counted tinystories") in why


def test_a_network_with_counts_beside_it_is_not_the_papers_head():
    evidence = losses([0, 1, 2], "dense", "grouped")
    alone = answers_to(evidence)["on-par-gpt2"].verdict
    for row in losses([0, 1, 2], "grouped", step="counts")["runs"]:
        evidence["runs"].append(row | {"prior": "gate", "head_options": "prior=gate", "val/loss": row["val/loss"] - 3})
    assert answers_to(evidence)["on-par-gpt2"].verdict == alone


def test_one_head_with_groups_as_good_as_dense_refutes_that_low_accuracy_is_a_sign_of_failure():
    evidence = losses([0, 1, 2], "dense", "grouped", "class_full untied")
    for row in evidence["runs"]:
        if row["head"] == "class_full":
            row["val/loss"] += 0.04  # on par
        if row["head"] == "grouped":  # lower on average, and shown to be neither better nor worse
            row["val/loss"] = {0: 4.25, 1: 4.05, 2: 4.25}[row["seed"]]
    assert answers_to(evidence)["group-sign"].verdict.word == FAILS


def test_our_head_is_one_configuration():
    evidence = losses([0, 1], "dense", "shortlist")
    assert answers_to(evidence)["on-par-gpt2"].ours.word == HOLDS_WHERE
    for row in evidence["runs"]:
        if row["head"] == "shortlist":
            row["head_options"] = row["head_options"].replace("directions=0", "directions=16")
    assert answers_to(evidence)["on-par-gpt2"].ours.word == NOT_SHOWN


def test_parity_of_the_papers_own_body_holds_outright():
    assert answers_to(losses([0, 1, 2], "dense", "shortlist"))["on-par-gpt2"].ours.word == HOLDS_WHERE
    large = answers_to(losses([0, 1, 2], "dense", "shortlist", model="gpt2-33m"))["on-par-gpt2"].ours
    assert large.word == HOLDS
    assert large.why.startswith("Better")


def test_runs_that_differ_in_more_than_head_and_rate_are_not_compared():
    evidence = losses([0, 1], "dense", "grouped")
    for row in evidence["runs"]:
        if row["head"] == "grouped":
            row["train.max_steps"] = 301
    assert answers_to(evidence)["on-par-gpt2"].verdict.word == NOT_SHOWN


def test_each_head_is_compared_at_its_best_learning_rate():
    evidence = losses([0, 1], "dense", "grouped")
    for row in [row for row in evidence["runs"] if row["head"] == "grouped"]:
        worse = {"run": f"{row['run']},slow", "optim.lr": 0.008, "val/loss": row["val/loss"] + 1}
        one_seed = {"run": f"{row['run']},lucky", "optim.lr": 0.002, "val/loss": 1.0}
        evidence["runs"] += [row | worse, *([row | one_seed] if row["seed"] == 0 else [])]
    verdict = answers_to(evidence)["on-par-gpt2"].verdict
    assert verdict.value == pytest.approx(0.9)
    assert not any(name.endswith((",slow", ",lucky")) for name in verdict.runs)


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


def test_predictions_of_our_head_want_real_steps_of_it():
    evidence = make_evidence()
    for row in evidence["bench-memory"]:
        if row["part"] == "truth" and row["head"].startswith("shortlist"):
            row["head"] = "shortlist"  # with other options
    found = answers_to(evidence)["memory"]
    assert (found.verdict.word, found.ours.word) == (HOLDS_WHERE, NOT_SHOWN)


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
    assert "neo-33m or gpt2-33m, fused attention, batch 47 and more" in found["memory"].verdict.where  # predicted ones
    assert "4.00x with gpt2-33m, batch 32, on a GPU; 3.55x" in found["memory"].verdict.why
    assert found["throughput"].verdict.value == 2.5
    assert found["throughput"].verdict.word == FAILS
    evidence["runs"] = [row for row in evidence["runs"] if not (row["run"].startswith("gpu/") and row["seed"])]
    found = answers_to(evidence)
    assert "on a GPU (one run)" in found["memory"].verdict.why
    assert "GPU" not in found["throughput"].verdict.why  # one run says nothing about time


def test_steps_of_different_shapes_are_not_paired():
    evidence = make_evidence()
    for row in evidence["bench-steps"]:
        if row["head"] == "dense":
            row["block_size"] = 256
    assert answers_to(evidence)["throughput"].verdict.word == NOT_SHOWN


def test_what_is_predicted_is_called_so():
    found = answers_to(make_evidence())
    grid = found["memory-grid"].verdict
    assert grid.where.startswith("batch x length is of 1 x 128, 32 x 128, gpt2-8m; 2 of 4 cells measured")
    assert "predicted at V = 50,257, 100,000, 1,000,000" in found["vocabularies"].verdict.where
    evidence = make_evidence()
    for row in evidence["bench-vocab"]:
        row["measured_bytes"] = row["predicted_bytes"]
    assert answers_to(evidence)["vocabularies"].verdict.word == HOLDS


def test_one_text_is_not_every_text():
    evidence = make_evidence()
    for row in evidence["order"]:
        row |= {"rank_correlation": 0.95, "low": 0.94, "high": 0.96}
    assert answers_to(evidence)["merge-order"].verdict.word == HOLDS
    evidence["order"].pop()
    verdict = answers_to(evidence)["merge-order"].verdict
    assert (verdict.word, verdict.where) == (HOLDS_WHERE, "the text is tinystories")


def test_a_size_that_fails_at_one_budget_does_not_hold_on_its_text():
    evidence = losses([])
    evidence["runs"] += [
        of_size(size, seed, text) for size in (224, 448) for seed in (0, 1) for text in ("tinystories", "prose")
    ]
    assert answers_to(evidence)["group-size-texts"].verdict.word == HOLDS
    for size, loss in ((224, 0.5), (448, 0.0)):
        evidence["runs"] += [of_size(size, seed, loss=loss) | {"train.max_steps": 900} for seed in (0, 1)]
    verdict = answers_to(evidence)["group-size-texts"].verdict
    assert verdict.word == HOLDS_WHERE
    assert "tinystories (gpt2-128x3, 0.41 million tokens)" in verdict.where
    assert "1.84" not in verdict.where
    assert verdict.value == pytest.approx(0.5)


def test_rare_tokens_are_paired_by_seed():
    evidence = make_evidence()
    for row in evidence["deciles"]:  # what differs between seeds, in both tenths alike, is no noise of the difference
        run = row["run"]
        if "grouped" in run:
            row["loss"] += 0.3 * int(run[-1])
    verdict = answers_to(evidence)["rare-tokens"].verdict
    assert verdict.word == FAILS
    assert verdict.high - verdict.low < 1e-6
    assert "3 seeds, paired" in verdict.interval


def test_a_sweep_of_few_sizes_does_not_show_the_least():
    sizes = [of_size(size, 0) for size in (128, 224, 448)]
    assert answers_to(nothing() | {"runs": sizes})["sqrt-v"].verdict.word == NOT_SHOWN
    off = [of_size(size, 0) for size in (64, 128, 224, 448, 1024)]
    for row in off:
        row["memory/peak_head_gib"] = 1.0 if row["group_size"] == 128 else 1.04
    verdict = answers_to(nothing() | {"runs": off})["sqrt-v"].verdict
    assert verdict.word == FAILS
    assert "4.0% more than S = 128" in verdict.why
    assert "chunks of 256 rows" in verdict.where


def test_tasks_at_chance_say_nothing():
    runs = [of_size(size, seed) for size in (224, 448) for seed in range(2)]
    for run in runs:
        run |= {"task/choice_accuracy": 0.25, "task/cloze_accuracy": 0.0}
    verdict = answers_to(nothing() | {"runs": runs})["group-size-tasks"].verdict
    assert verdict.word == NOT_SHOWN
    assert "chance" in verdict.why
    for run in runs:
        run |= {"task/choice_accuracy": 0.9 if run["group_size"] == 448 else 0.5}
    verdict = answers_to(nothing() | {"runs": runs})["group-size-tasks"].verdict
    assert verdict.word == FAILS
    assert verdict.why.startswith("At cloze no model is better than chance.")
    assert verdict.where == "at choice, gpt2-128x3"


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

    text = (files("grouped_lm.conf") / "reproduction" / "claims.yaml").read_text()
    assert old in text
    with pytest.raises(ConfigError, match=said):
        load_claims(text.replace(old, new))


def test_cases_U13_a_smoke_test_answers_nothing_and_says_so():
    evidence = make_evidence()
    assert make_report(evidence, lambda _: None).banner == ""
    evidence["steps"] = [row | {"scale": "smoke"} for row in evidence["steps"]]
    report = make_report(evidence, lambda _: None)
    assert report.counts() == [(HOLDS, 0), (HOLDS_WHERE, 0), (FAILS, 0), (NOT_SHOWN, len(CLAIMS.claims))]
    assert {answer.ours.word for answer in report.answers if answer.ours} == {NOT_SHOWN}
    assert any(answer.verdict.figure != "-" for answer in report.answers)
    assert "This is a smoke test." in report_markdown(report)
    assert "This is a smoke test." in str(render_page(report, lambda _: None))


def test_cases_U14_names_in_the_page_are_code():
    page = str(render_page(make_report(make_evidence(), lambda _: None), lambda _: None))
    assert "(<code>film</code>)" in page
    assert "`" not in "".join(re.findall(r"<h3>.*?</h3>", page))
    assert str(code_html("`a<b` & c")) == "<code>a&lt;b</code> &amp; c"
