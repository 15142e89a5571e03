"""`prior=kneser_ney`: a run that predicts with counts too, and whose network is that of a run without."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from grouped_lm.data import prepare_data
from grouped_lm.evaluate.documents import document_losses
from grouped_lm.prior.mixture import fit_mixture_weight
from grouped_lm.prior.store import counted_text, load_or_build
from grouped_lm.runs.load import load_config, load_run

PRIOR = ["prior=kneser_ney", "prior.order=4", "prior.held_out_tokens=500"]


def result_of(run) -> dict:
    return json.loads(Path(run, "result.json").read_text(encoding="utf-8"))


def last_state(run, name="state") -> dict[str, torch.Tensor]:
    (last,) = Path(run, "checkpoints").glob("*8")
    return load_file(last / f"{name}.safetensors")


@pytest.fixture
def trained(gvc, tiny):
    """Train runs/NAME with further words; 8 steps."""

    def make(name: str, *words: str) -> Path:
        done = gvc("train", *tiny, *words, f"hydra.run.dir=runs/{name}")
        assert done.code == 0, done.err
        return Path("runs", name)

    return make


@pytest.mark.parametrize("head", ["shortlist", "dense"])
def test_body_and_head_are_trained_as_without_a_prior(trained, head):
    plain = last_state(trained("plain", f"head={head}", "model.dropout=0.1"))
    mixed = last_state(trained("mixed", f"head={head}", "model.dropout=0.1", *PRIOR, "prior.held_out_tokens=0"))
    assert plain.keys() == mixed.keys()
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)
    assert result_of("runs/mixed")["val/loss_head"] == pytest.approx(result_of("runs/plain")["val/loss"], rel=1e-6)


@pytest.mark.parametrize("mix", ["weight", "gate"])
def test_all_losses_of_a_run_are_those_of_its_parts(gvc, trained, texts, mix):
    run = trained("mixed", *PRIOR, f"prior.mix={mix}", "optim.lr=1e-2")
    result, config = result_of(run), load_config(run)
    corpus = prepare_data(config.data, config.tokenizer)
    model, tokenizer = load_run(run)
    counted = counted_text(corpus.train, config.prior, tokenizer)
    assert counted.target_tokens == corpus.train.target_tokens - 500
    counts = load_or_build(counted, 4)

    def losses(tokens):  # windows of 64, as the network reads them
        parts = []
        for start in range(0, len(tokens) - 1, 64):
            piece = np.asarray(tokens[start : start + 65], np.int64)
            states = model.body(torch.from_numpy(piece[:-1])[None])[0]
            own = model.head.head.log_prob(states).gather(1, torch.from_numpy(piece[1:])[:, None])[:, 0]
            parts.append((own.double().numpy(), counts.target_log_prob(piece)))
        return np.concatenate(parts, axis=1)

    with torch.no_grad():
        weight = fit_mixture_weight(*losses(counted.rest()))
        own, prior = losses(corpus.valid.tokens())
    assert float(model.head.weight) == pytest.approx(weight, abs=1e-4)
    assert result["val/loss_head"] == pytest.approx(-own.mean(), abs=1e-5)
    assert result["val/loss_prior"] == pytest.approx(-prior.mean(), abs=1e-5)
    one = -np.logaddexp(np.log1p(-weight) + own, np.log(weight) + prior).mean()
    assert result["val/loss_weight"] == pytest.approx(one, abs=1e-4)
    if mix == "weight":
        assert result["val/loss"] == pytest.approx(result["val/loss_weight"], abs=1e-6)
        assert result["val/prior_share"] == pytest.approx(weight, abs=1e-4)

    evaluated = json.loads(gvc("eval", str(run), "--json", "--samples", "2").out)
    for key in ("val/loss", "val/loss_head", "val/loss_prior", "val/loss_weight", "val/bits_per_byte"):
        assert evaluated[key] == pytest.approx(result[key], abs=1e-5), key
    assert 0 < evaluated["val/top1_accuracy"] <= evaluated["val/top5_accuracy"] < 1
    assert document_losses(run, Path(texts["valid"]), 8).loss == pytest.approx(result["val/loss"], abs=1e-5)
    alone = json.loads(gvc("eval", str(run), "prior=none", "--json", "--samples", "0").out)
    assert alone["val/loss"] == pytest.approx(result["val/loss_head"], abs=1e-5)
    (row,) = json.loads(gvc("ls", "runs", "--json").out)
    assert row["prior"] == mix
    assert f"prior={mix}" in row["head_options"]
    refused = gvc("export", str(run), "--out", "exported")
    assert (refused.code, Path("exported").exists()) == (2, False)
    assert "prior=kneser_ney" in refused.err


def test_a_killed_run_goes_on_to_the_byte(trained, gvc, tiny, cache_dir):
    words = [*tiny, *PRIOR, "train.checkpoint_every_steps=1", "train.eval_every_steps=2", "optim.ema=0.9"]
    killer = (
        "import os, signal, sys; from grouped_lm.train import checkpoints as c; from grouped_lm.cli.main import main\n"
        "save = c.write_checkpoint\n"
        "def dying(parent, step, files, keep):\n"
        "    save(parent, step, files, keep)\n"
        "    if step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "c.write_checkpoint = dying; main(sys.argv[1:])"
    )
    environment = os.environ | {"GVC_CACHE_DIR": str(cache_dir)}
    command = [sys.executable, "-c", killer, "train", *words, "hydra.run.dir=runs/killed"]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not Path("runs/killed/result.json").exists()
    runs = trained("killed", *words), trained("whole", *words)
    for name in ("state", "prior"):
        one, other = (next((run / "checkpoints").glob("*8")) / f"{name}.safetensors" for run in runs)
        assert one.read_bytes() == other.read_bytes(), name
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")] for run in runs]
    curves = [[row["val/loss"] for row in run if "val/loss" in row] for run in rows]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 4
    texts = [gvc("sample", str(run), "--seed", "3").out for run in runs]
    assert texts[0] == texts[1] != ""
    drift = gvc("train", *words, "prior.order=3", "hydra.run.dir=runs/killed")
    assert "prior.order: 4 -> 3" in drift.err


def test_several_micro_batches_and_a_pruned_model(trained):
    run = trained("mixed", *PRIOR, "prior.min_count=2", "train.grad_accum_steps=2", "train.dtype=bfloat16")
    result = result_of(run)
    whole = trained("whole", *PRIOR, "train.grad_accum_steps=2", "train.dtype=bfloat16")
    assert result["memory/prior_gib"] < result_of(whole)["memory/prior_gib"]
    assert result["val/loss"] < result["val/loss_head"]


def test_two_processes_train_one_gate(trained):
    result = result_of(trained("two", *PRIOR, "train.devices=2", "train.max_steps=3"))
    assert result["val/loss"] < result["val/loss_head"]


def test_wrong_settings_are_named(gvc, tiny, trained):
    both = gvc("train", *tiny, "head=kneser_ney", "prior=kneser_ney")
    assert (both.code, "prior=kneser_ney needs a network" in both.err) == (2, True)
    nothing = gvc("train", *tiny, "prior=kneser_ney", "prior.mix=weight", "prior.held_out_tokens=0")
    assert "prior.mix=weight is fitted on held-out text" in nothing.err
    shards = gvc("train", *tiny, "prior=kneser_ney", "train.strategy=fsdp2", "train.devices=2")
    assert (shards.code, "needs whole weights in each process" in shards.err) == (2, True)
    refused = gvc("eval", str(trained("plain")), "prior=kneser_ney")
    assert "was trained without a prior" in refused.err


def test_a_text_too_short_beside_a_prior_is_refused_before_its_folder_is_made(gvc, tiny, workdir):
    Path("short.txt").write_text("x" * 68, encoding="utf-8")
    words = [*tiny, "data.train=short.txt", "hydra.run.dir=run", "train.max_steps=1"]
    refused = gvc("train", *words, "prior=kneser_ney")
    assert (refused.code, Path("run").exists()) == (3, False)
    assert "prior.held_out_tokens keeps 6 tokens of it aside" in refused.err
    assert gvc("train", *words).code == 0


@pytest.mark.parametrize("policy", ["raise", "skip", "rollback"])
def test_a_divergence_is_said_as_without_a_prior(gvc, tiny, policy):
    words = ["optim.lr=1e9", f"train.on_nonfinite={policy}", "train.max_nonfinite=2"]
    plain = gvc("train", *tiny, *words, "hydra.run.dir=plain")
    mixed = gvc("train", *tiny, *words, *PRIOR, "hydra.run.dir=mixed")
    assert (mixed.code, plain.code) == (7, 7)
    assert "diverged at step" in plain.err
    assert mixed.err.splitlines()[-1] == plain.err.splitlines()[-1]
    assert mixed.err.count(f"(train.on_nonfinite={policy})") == plain.err.count(f"(train.on_nonfinite={policy})")


def test_a_last_step_that_diverges_is_said(gvc, tiny):
    words = ["optim.lr=1e9", "optim.warmup_steps=0", "train.max_steps=1", *PRIOR, "prior.mix=weight"]
    outcome = gvc("train", *tiny, *words, "hydra.run.dir=run")
    assert outcome.code == 7
    assert "diverged at step 1: the loss of the text of prior.held_out_tokens is not finite" in outcome.err
    assert json.loads(Path("run/result.json").read_text(encoding="utf-8"))["state"] == "failed"


def test_counts_of_another_text_are_refused(gvc, tiny, tmp_path, trained):
    text = tmp_path / "own.txt"
    text.write_text("A cat sat. The cat ran and the dog sat.\n<|endoftext|>\n" * 40, encoding="utf-8")
    run = trained("mixed", *PRIOR, f"data.train={text}")
    text.write_text(text.read_text(encoding="utf-8") + "One more dog ran.\n<|endoftext|>\n", encoding="utf-8")
    changed = gvc("sample", str(run))
    assert (changed.code != 0, "its training text has changed" in changed.err) == (True, True)
    text.unlink()
    gone = gvc("sample", str(run))
    assert (gone.code != 0, "counts its training text" in gone.err) == (True, True)
    assert gvc("sample", str(run), "prior=none").code == 0


def test_the_leaderboard_has_both_rows_and_names_the_prior(gvc, trained):
    runs = [trained("plain"), trained("mixed", *PRIOR)]
    outcome = gvc("leaderboard", *map(str, runs), "--csv", "rows.csv")
    assert outcome.code == 0, outcome.err
    with Path("rows.csv").open(newline="", encoding="utf-8") as file:
        rows = {"prior=gate" in row["options"].split(): row for row in csv.DictReader(file)}
    assert rows.keys() == {False, True}
    assert float(rows[True]["val_loss_nats"]) == pytest.approx(result_of(runs[1])["val/loss"], rel=1e-5)
