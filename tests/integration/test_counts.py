"""`head=kneser_ney`: a run that counts n-grams, and is listed, ranked and continued like any other."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from grouped_lm.data import prepare_data
from grouped_lm.errors import DataError, DriftError
from grouped_lm.evaluate.documents import document_losses
from grouped_lm.prior import build_kneser_ney
from grouped_lm.runs.load import load_config


def test_a_run_of_counts_has_the_loss_of_its_model(gvc, tiny, texts):
    words = ["train", *tiny, "head=kneser_ney", "head.order=3", "train.eval_every_steps=2", "tracking=none"]
    assert gvc(*words, "train.max_steps=4", "hydra.run.dir=runs/counts").code == 0
    result = json.loads(Path("runs/counts/result.json").read_text(encoding="utf-8"))
    config = load_config(Path("runs/counts"))
    corpus = prepare_data(config.data, config.tokenizer)
    size = config.train.micro_batch_size * config.model.block_size
    tokens, valid = np.asarray(corpus.train.tokens()), np.asarray(corpus.valid.tokens())
    tokenizer = corpus.train.manifest["tokenizer"]
    curve = []
    for step in (2, 4):
        model = build_kneser_ney(tokens[: step * size + 1], tokenizer["vocab_size"], tokenizer["eot_id"], order=3)
        curve.append(-model.target_log_prob(valid).mean())
    rows = [json.loads(line) for line in Path("runs/counts/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["val/loss"] for row in rows] == pytest.approx(curve)
    assert (result["val/loss"], result["state"]) == (rows[-1]["val/loss"], "complete")
    assert result["trainer/tokens"] == min(4 * size, len(tokens) - 1)

    (listed,) = json.loads(gvc("ls", "runs", "--json").out)
    assert (listed["head"], listed["state"], listed["head_options"]) == ("kneser_ney", "complete", "order=3")
    assert gvc("leaderboard", "runs", "--report", texts["valid"], "--csv", "board.csv").code == 0
    (row,) = csv.DictReader(Path("board.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["report_loss_nats"]) == pytest.approx(result["val/loss"], abs=1e-5)
    assert float(row["report_bits_per_byte"]) == pytest.approx(result["val/bits_per_byte"], abs=1e-5)
    for command in (["eval", "runs/counts"], ["sample", "runs/counts"]):
        refused = gvc(*command)
        assert refused.code
        assert "counted n-grams and has no network" in refused.err


def test_the_report_text_is_encoded_as_the_training_text_was(gvc, tiny, texts, tmp_path):
    words = ["train", *tiny, "tokenizer=bpe", "tokenizer.vocab_size=300", "head=kneser_ney", "head.order=3"]
    assert gvc(*words, "tracking=none", "hydra.run.dir=runs/counts").code == 0
    run, text = Path("runs/counts"), Path(texts["valid"])
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    losses = document_losses(run, text, result["trainer/step"])
    assert losses.loss == pytest.approx(result["val/loss"], abs=1e-5)
    for cached in run.glob("documents-*.json"):
        cached.unlink()
    (run / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="has no tokenizer"):
        document_losses(run, text, result["trainer/step"])


def test_counts_of_a_text_that_changed_are_refused(gvc, tiny, texts):
    text = Path("own.txt")
    text.write_text(Path(texts["train"]).read_text(encoding="utf-8"), encoding="utf-8")
    words = ["train", *tiny, "data.train=own.txt", "head=kneser_ney", "tracking=none", "hydra.run.dir=runs/counts"]
    assert gvc(*words).code == 0
    text.write_text(text.read_text(encoding="utf-8") + "One more.\n", encoding="utf-8")
    with pytest.raises(DriftError, match=r"data\.train"):
        document_losses(Path("runs/counts"), Path(texts["valid"]), 8)


def test_wrong_settings_are_named(gvc, tiny):
    assert "head.order must be in [2, 5], got 6" in gvc("train", *tiny, "head=kneser_ney", "head.order=6").err
    several = gvc("train", *tiny, "head=kneser_ney", "train.devices=2", "train.micro_batch_size=4")
    assert several.code == 2
    assert "counts in one process, got 2" in several.err


def test_documents_have_the_validation_loss_of_a_network(gvc, tiny, texts):
    assert gvc("train", *tiny, "head=dense", "tracking=none", "hydra.run.dir=run").code == 0
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    for _ in range(2):  # from the checkpoint, then from the cache
        losses = document_losses(Path("run"), Path(texts["valid"]), result["trainer/step"])
        assert losses.loss == pytest.approx(result["val/loss"], rel=1e-6)
        assert losses.bits_per_byte == pytest.approx(result["val/bits_per_byte"], rel=1e-6)
        assert len(losses.nats) == len(losses.text_bytes) > 1


def test_documents_of_a_run_on_another_source_have_losses(gvc, texts):
    words = ["model=debug", "tokenizer=bytes", "head=dense", "train.max_steps=2", "data.num_train_stories=20"]
    assert gvc("train", *words, "data.num_valid_stories=5", "tracking=none", "hydra.run.dir=run").code == 0
    losses = document_losses(Path("run"), Path(texts["valid"]), 2)
    evaluated = gvc("eval", "run", "--data", texts["valid"], "--json")
    assert evaluated.code == 0, evaluated.err
    assert losses.loss == pytest.approx(json.loads(evaluated.out)["val/loss"], rel=1e-6)
