"""lm-evaluation-harness sees the same perplexity as `gvc eval`, through the adapter and on an exported run."""

import json
import math

import pytest
import torch

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")


NAMES, TOYS = ("Ann", "Bob", "Cid", "Dan", "Eve", "Flo"), ("kite", "drum", "boat", "doll", "cup")


@pytest.fixture
def judged(gvc, tiny, monkeypatch, tmp_path):
    stories = [f"{name} had a {toy}. {name} loved the {toy}." for name in NAMES for toy in TOYS]
    (tmp_path / "valid.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    run = gvc(
        "train", *tiny, "head.group_size=16", "model.block_size=256", "train.max_steps=12", "data.valid=valid.txt"
    ).run_dir
    outcome = gvc(
        "eval", str(run), "--tasks", "story_perplexity,story_choice,story_cloze_word", "--samples", "0", "--json"
    )
    assert outcome.code == 0, outcome.err
    return run, json.loads(outcome.out)


def test_the_adapter_agrees_with_ours(judged):
    _, figures = judged
    theirs = figures["harness"]
    assert theirs["story_perplexity"]["word_perplexity,none"] == pytest.approx(
        figures["story/perplexity_per_word"], rel=1e-4
    )
    assert theirs["story_choice"]["acc_norm,none"] == pytest.approx(figures["task/choice_accuracy"])
    assert theirs["story_cloze_word"]["acc,none"] == pytest.approx(figures["task/cloze_accuracy"])


def test_an_exported_run_agrees_with_ours(judged, gvc):
    pytest.importorskip("accelerate")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, figures = judged
    exported = gvc("export", str(run)).out.strip()
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu", max_length=256)
    with torch.no_grad():
        found = simple_evaluate(
            model,
            tasks=["story_perplexity"],
            task_manager=TaskManager(include_path=str(run / "tasks")),
            bootstrap_iters=0,
        )
    theirs = found["results"]["story_perplexity"]["word_perplexity,none"]
    assert math.isfinite(theirs)
    assert theirs == pytest.approx(figures["story/perplexity_per_word"], rel=1e-4)


def test_unknown_tasks(gvc, tiny):
    run = gvc("train", *tiny, "train.max_steps=1").run_dir
    outcome = gvc("eval", str(run), "--tasks", "nonsense", "--samples", "0")
    assert outcome.code == 2
    assert "unknown task nonsense" in outcome.err
    assert "reading" not in outcome.err
