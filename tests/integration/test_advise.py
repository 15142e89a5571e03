"""`gvc advise`: what it prints, what a screen finds, and that Ctrl-C loses nothing."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from grouped_lm.cli.compose.compose import HydraFlags, compose_jobs

from grouped_lm.advise import screen
from grouped_lm.advise.heads import REFERENCE, choose_variants, estimate_cost
from grouped_lm.bench.variants import load_variant
from grouped_lm.config import Config, ModelConfig, TokenizerConfig
from grouped_lm.data import prepare_data
from grouped_lm.measure.devices import DEVICES

STEPS = ["train.max_steps=32", "optim.warmup_steps=4", "optim.lr=3e-3"]


@pytest.fixture
def losses_in(tiny, workdir):
    """Run a screen of two heads in a folder, and return the losses of each head by seed and step."""
    config = compose_jobs([*tiny, *STEPS], HydraFlags())[0][0]
    variants, corpus = choose_variants(config, ["shortlist-plain"]), prepare_data(config.data, config.tokenizer)

    def run(folder, steps=32):
        with screen.Screen(config, corpus, variants, workdir / folder, print) as tracks:
            screen.run_screen(tracks, None, steps)
            return {trial.name: trial.losses for trial in tracks.trials()}

    return run


def test_without_minutes_there_are_figures_costs_and_a_sentence(gvc, tiny):
    outcome = gvc("advise", *tiny, "--device", "a100")
    assert outcome.code == 0
    assert "types (different tokens)" in outcome.out
    assert "shortlist-own-2048" in outcome.out
    assert outcome.out.rstrip().splitlines()[-1].startswith("By the plan ")


def test_a_screen_gives_losses_and_a_sentence(gvc, tiny):
    outcome = gvc("advise", *tiny, *STEPS, "--heads", "shortlist-plain", "--steps", "8", "--json", "--out", "folder")
    assert outcome.code == 0
    said = json.loads(outcome.out)
    assert [set(trial["losses"]["0"]) for trial in said["screen"]["trials"]] == [{"8"}, {"8"}]
    assert said["text"]["passes"] == pytest.approx(32 * 2 * 64 / said["text"]["tokens"])
    verdict = said["screen"]["verdict"]
    assert verdict["step"] == 8
    assert f"variant={verdict['head']}" in said["sentence"]
    assert "compared at step 8" in said["sentence"]


def test_a_screen_is_the_beginning_of_full_runs_and_goes_on_after_ctrl_c(gvc, tiny, losses_in, monkeypatch):
    whole = losses_in("whole")
    seeds = {0: {8, 16, 32}, 1: {8, 16}}
    for name in ("shortlist-plain", REFERENCE):
        assert {seed: set(steps) for seed, steps in whole[name].items()} == seeds
    run_steps, turns = screen.run_steps, []

    def interrupted(run, until):
        turns.append(until)
        if len(turns) == 5:  # the first head on its way to the second comparison
            os.kill(os.getpid(), signal.SIGINT)
        run_steps(run, until)

    monkeypatch.setattr(screen, "run_steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        losses_in("parts")
    assert turns == [8, 8, 8, 8, 16]
    monkeypatch.setattr(screen, "run_steps", run_steps)
    assert losses_in("parts") == whole

    words = ["experiment=main_job", f"variant={REFERENCE}", *tiny, *STEPS]
    continued = gvc("train", *words, f"hydra.run.dir=whole/{REFERENCE}-seed0")
    assert continued.code == 0
    result = json.loads((continued.run_dir / "result.json").read_text())
    assert result["val/loss"] == whole[REFERENCE][0][32]  # this text is shorter than the part that a screen takes


def test_a_finished_run_is_left_as_it_is_and_losses_of_other_tokens_do_not_mix(gvc, tiny, texts, workdir):
    valid = workdir / "long.txt"
    valid.write_text(Path(texts["valid"]).read_text() * 6)
    assert valid.stat().st_size > screen.VALID_TOKENS + 64
    words = [*tiny, *STEPS, f"data.valid={valid}"]

    def screened(steps, *more):
        outcome = gvc("advise", *words, "--heads", "shortlist-plain", "--steps", steps, "--out", "adv", *more)
        assert outcome.code == 0, outcome.err
        return outcome.out

    def losses(steps):
        trials = json.loads(screened(steps, "--json"))["screen"]["trials"]
        return {trial["name"]: trial["losses"]["0"] for trial in trials}

    first = losses("8")["shortlist-plain"]
    assert set(first) == {"8"}
    folder = workdir / "adv" / "shortlist-plain-seed0"
    finish = ["train", "experiment=main_job", *words]
    assert gvc(*finish, "variant=shortlist-plain", f"hydra.run.dir={folder}").code == 0
    finished = {name: (folder / name).read_bytes() for name in ("result.json", "metrics.jsonl")}
    assert json.loads(finished["result.json"])["state"] == "complete"

    said = " ".join(screened("16").split())
    assert "shortlist-plain is left out: its run is complete, and has no loss of the screen at step 16." in said
    last = losses("32")
    assert (last["shortlist-plain"], set(last[REFERENCE])) == (first, {"8", "16", "32"})
    assert {name: (folder / name).read_bytes() for name in finished} == finished

    reference = workdir / "adv" / f"{REFERENCE}-seed0"
    assert gvc(*finish, f"variant={REFERENCE}", f"hydra.run.dir={reference}").code == 0
    whole = json.loads((reference / "result.json").read_text())["val/loss"]
    assert losses("32") == last
    assert last[REFERENCE]["32"] != whole


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--minutes", "0"], "--minutes must be in [0.01, 1e+06], got 0.0"),
        (["--minutes", "0.01"], "--minutes is too short: 2 heads need about "),
        (["--heads", "nonesuch"], "--heads must be one of adaptive, "),
        (["--device", "abacus"], "--device abacus is not known; there are "),
    ],
)
def test_mistakes_get_one_line(gvc, tiny, words, line):
    outcome = gvc("advise", *tiny, *STEPS, "--heads", "shortlist-plain", *words)
    assert outcome.code == 2
    assert line in outcome.err.splitlines()[-1]


def test_heads_without_a_shared_table_have_a_plan(gvc, tiny):
    outcome = gvc("advise", *tiny, "model.embedding=factorised")
    assert outcome.code == 0, outcome.err
    assert "model.embedding=factorised: all heads have head.tied=false; give it to gvc train too" in outcome.err
    assert REFERENCE in outcome.out
    assert gvc("advise", *tiny, "train.vocab_parallel=true").code == 0


def test_the_planned_cost_of_trim_follows_the_text():
    model = ModelConfig(n_layer=1, n_head=1, n_embd=16, block_size=16)
    config = Config(model=model, tokenizer=TokenizerConfig(name="bytes"))
    counts = np.zeros(257, int)
    counts[:40] = 1
    few, all_of_them = (
        estimate_cost(config, load_variant(REFERENCE), DEVICES["a100"], c) for c in (counts, counts + 1)
    )
    assert few.head_flops_per_token == 2 * 16 * 41  # 40 types and one class for the others
    assert all_of_them.head_flops_per_token == 2 * 16 * 257
    assert few.peak_bytes < all_of_them.peak_bytes
    assert few.tokens_per_sec > all_of_them.tokens_per_sec
