"""`gvc sample --example` writes a story with a trained model that comes with the package."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from grouped_lm.data.sources.tinytales import generate_stories
from grouped_lm.runs.load import load_run

EXAMPLES = Path(str(files("grouped_lm") / "examples"))


def test_the_examples_fit_into_5_mb_and_have_a_card():
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) <= 5_000_000
    card = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in ("shortlist", "dense"):
        result = json.loads((EXAMPLES / name / "result.json").read_text())
        assert f"| `{name}` | {result['val/perplexity']:.2f} | {result['val/bits_per_byte']:.3f} |" in card
    assert "make example" in card


@pytest.mark.parametrize("name", [None, "dense"])
def test_a_story_at_once_in_an_empty_folder(gvc, workdir, name):
    words = ["sample", *([name] if name else []), "--example", "--max-new-tokens", "40", "--seed", "1"]
    first = gvc(*words)
    assert first.code == 0, first.err
    assert len(first.out.split()) > 15
    assert gvc(*words).out == first.out
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("words", [["sample"], ["sample", "grouped", "--example"]])
def test_a_run_or_an_example_is_needed(gvc, words):
    outcome = gvc(*words)
    assert outcome.code == 2
    assert "--example" in outcome.err


@pytest.mark.parametrize("name", ["shortlist", "dense"])
@torch.no_grad()
def test_the_examples_have_learnt_the_stories(name):
    """The loss on 20 stories is near that of all validation stories, which training measured."""
    model, tokenizer = load_run(EXAMPLES / name)
    nats = []
    for story in generate_stories(20, 0, "valid"):
        ids = torch.tensor([[tokenizer.eot_id, *tokenizer.encode(story), tokenizer.eot_id]])[:, :257]
        nats.append(model(ids[:, :-1], ids[:, 1:], reduction="none").nll.flatten().numpy())
    result = json.loads((EXAMPLES / name / "result.json").read_text())
    assert np.concatenate(nats).mean() == pytest.approx(result["val/loss"], rel=0.1)
