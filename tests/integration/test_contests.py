"""The contests of `gvc sweep`: stages that follow from results, and budgets in steps."""

import json
from pathlib import Path

import pytest
from grouped_lm.cli.compose.contests import without_folders

from grouped_lm.report.contest import notes_of
from grouped_lm.runs.load import load_config


@pytest.fixture(scope="session")
def untimed(tiny) -> list[str]:
    """`tiny` without what a contest at equal time chooses itself."""
    return [word for word in tiny if not word.startswith(("train.max_steps=", "train.threads="))]


def results(folder: str) -> dict[str, dict]:
    """The result of every job, by the name of its folder."""
    paths = Path("runs", folder).glob("*/result.json")
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("data.valid=/home/me/texts/valid.txt", "data.valid=valid.txt"),
        ("data.train=[/a/one.txt,b/two.txt]", "data.train=[one.txt,two.txt]"),
        ("data.train=['/a/b/train.txt','/a/c/train.txt']", "data.train=['b/train.txt','c/train.txt']"),
        ("data.train=train.txt", "data.train=train.txt"),
        ("data.name=a/b", "data.name=a/b"),
    ],
)
def test_a_row_names_its_texts_without_their_folders(given, shown):
    assert without_folders(given) == shown


def test_equal_tokens_repeats_the_best_rate_with_other_seeds(gvc, tiny):
    words = ["sweep", "equal-tokens", *tiny, "variant=trim-bias", "optim.lr=1e-5,1e-2", "seed=0,1"]
    words += ["train.max_steps=6", "train.eval_every_steps=3", "tracking=none", "data.cache_dir=own/cache"]
    assert "further jobs follow" in gvc(*words, "model=debug", "--dry-run").out
    assert not Path("runs").exists()
    assert gvc(*words, "model=debug", "--max-jobs", "1").code == 0
    assert len(results("equal-tokens")) == 1
    run = gvc(*words, "model=debug")
    assert run.code == 0, run.err
    found = results("equal-tokens")
    assert {result["state"] for result in found.values()} == {"complete"}
    first = {name: result["val/bits_per_byte"] for name, result in found.items() if "seed=0" in name}
    best = min(first, key=first.get)
    assert set(found) == {*first, best.replace("seed=0", "seed=1")}
    config = load_config(Path("runs/equal-tokens", best))
    assert (config.optim.eps, config.optim.beta2, config.train.max_steps) == (1e-6, 0.99, 6)
    notes = notes_of(Path("runs/equal-tokens", best))
    assert notes["contest"] == "equal-tokens"
    assert notes["command"].startswith("gvc sweep equal-tokens variant=trim-bias model=debug optim.lr=0.01 seed=0 ")
    assert "/" not in notes["command"]  # of a text its name alone
    times = [path.stat().st_mtime_ns for path in sorted(Path("runs").glob("*/*/result.json"))]
    assert gvc(*words, "model=debug").code == 0
    assert [path.stat().st_mtime_ns for path in sorted(Path("runs").glob("*/*/result.json"))] == times


def test_equal_time_fixes_the_steps_before_the_run(gvc, untimed):
    words = ["sweep", "equal-time", *untimed, "variant=trim-bias", "model=debug,gpt2-1m", "seed=0", "tracking=none"]
    words += ["contest.speed_steps=12", "contest.bodies=1"]
    run = gvc(*words, "contest.budgets=[0.004x1]")
    assert run.code == 0, run.err
    found = results("equal-time")
    speeds = {name: result for name, result in found.items() if name.startswith("speed")}
    timed = {name: result for name, result in found.items() if name.startswith("minutes=0.004,threads=1,")}
    assert (len(speeds), len(timed), len(found)) == (2, 2, 4)
    for name, result in timed.items():
        config = load_config(Path("runs/equal-time", name))
        speed = next(r for n, r in speeds.items() if f"model={config.model.name}," in n)
        batch = config.train.micro_batch_size * config.model.block_size
        steps = max(1, int(speed["throughput/tokens_per_sec"] * 60 * 0.004 / batch))
        assert (config.train.max_steps, result["trainer/step"], config.train.threads) == (steps, steps, 1)
        notes = notes_of(Path("runs/equal-time", name))
        assert (notes["minutes"], notes["threads"]) == (0.004, 1)
        assert notes["command"].count("contest.budgets=[0.004x1]") == 1
    assert notes_of(Path("runs/equal-time", next(iter(speeds))))["measures_speed"]
    best = min(timed, key=lambda name: timed[name]["val/bits_per_byte"])
    more = gvc(*words, "contest.budgets=[0.004x1,0.008x1]", "--dry-run").out  # a longer one begins at the best body
    longer = [line.split()[-1] for line in more.splitlines() if "minutes=0.008" in line]
    assert longer == [f"runs/equal-time/{best.replace('0.004', '0.008')}"]


def test_failed_jobs_count_and_stop_all_stages(gvc, untimed):
    words = ["sweep", "equal-time", *untimed, "variant=trim-bias,dense-bias", "model=debug", "seed=0", "tracking=none"]
    words += ["contest.speed_steps=12", "contest.budgets=[0.004x1]", "optim.lr=1e8", "train.on_nonfinite=raise"]
    assert gvc(*words, "--fail-fast").code == 1
    assert [result["state"] for result in results("equal-time").values()] == ["failed"]
    gvc(*words, "hydra.sweep.dir=runs/other", "--max-jobs", "1")
    assert len(results("other")) == 1


def test_notes_are_of_the_run_that_was_made(gvc, tiny):
    words = ["sweep", "equal-tokens", *tiny, "variant=trim-bias", "model=debug", "optim.lr=1e-2", "tracking=none"]
    assert gvc(*words, "seed=0,1").code == 0
    gvc(*words, "seed=0,1", "train.max_steps=9", "--max-jobs", "1")
    for name, result in results("equal-tokens").items():
        command = notes_of(Path("runs/equal-tokens", name))["command"]
        assert f"train.max_steps={result['trainer/step']}" in command


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("equal-time", "contest.budgets=10", "contest.budgets must be a list such as [10x1,60x1], got 10"),
        ("equal-time", "contest.budgets=null", "contest.budgets must be a list"),
        ("equal-time", "contest.budgets=10x1", "contest.budgets must be a list"),
        ("equal-time", "contest.bodies=0", "contest.bodies must be in [1, 1e+09], got 0"),
        ("equal-time", "contest.speed_steps=many", "contest.speed_steps must be a whole number, got many"),
        ("equal-time", "train.max_steps=50", "equal-time chooses train.max_steps itself"),
        ("equal-time", "train.threads=2", "equal-time chooses train.threads itself"),
        ("equal-time", "train.eval_every_steps=5", "equal-time chooses train.eval_every_steps itself"),
        ("equal-time", "hydra.sweep.subdir=x", "hydra.sweep.subdir=x: a contest names the folders of its jobs itself"),
        ("equal-tokens", "hydra.sweep.subdir=x", "hydra.sweep.subdir=x: a contest names the folders of its jobs"),
        ("equal-tokens", "hydra.run.dir=x", "gvc sweep has hydra.sweep.dir"),
        (
            "equal-tokens",
            "contest.kind=time",
            "contest.kind=time needs contest.budgets, contest.speed_steps, contest.b",
        ),
        ("equal-tokens", "contest.kind=foo", "contest.kind must be one of tokens, time"),
        ("equal-tokens", "optim.lr=interval(1e-3,1e-2)", "a contest takes a list of values"),
        ("equal-tokens", "variant=glob(dense-b*)", "a contest takes a list of values"),
        ("equal-tokens", "optim.weight_decay=0,0.1", "a contest sweeps variant, model, optim.lr, seed alone"),
    ],
)
def test_wrong_settings_are_named(gvc, tiny, untimed, name, word, said):
    run = gvc("sweep", name, *(untimed if name == "equal-time" else tiny), word, "--dry-run")
    assert run.code == 2
    assert said in run.err
    assert len(run.err.strip().splitlines()) == 1


def test_the_speed_of_another_machine_is_refused(gvc, untimed):
    words = ["sweep", "equal-time", *untimed, "variant=trim-bias", "model=debug", "seed=0", "tracking=none"]
    words += ["contest.speed_steps=12", "contest.budgets=[0.004x1]"]
    assert gvc(*words).code == 0
    for path in Path("runs/equal-time").glob("speed*/environment.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"cpu": "another"}))
    run = gvc(*words)
    assert run.code == 2
    assert "has the speed of another machine (cpu another, here" in run.err


@pytest.mark.parametrize("budget", ["10", "x1", "0x1", "10x0", "ax1"])
def test_wrong_budgets_are_named(gvc, tiny, budget):
    run = gvc("sweep", "equal-time", *tiny, f"contest.budgets=[{budget}]", "variant=trim-bias")
    assert run.code == 2
    assert "contest.budgets" in run.err


def test_a_contest_of_ones_own_that_sweeps_too_little(gvc, tiny, workdir):
    (workdir / "own" / "sweep").mkdir(parents=True)
    text = "# @package _global_\ncontest:\n  kind: tokens\nhydra:\n  sweeper:\n    params:\n      seed: 0\n"
    (workdir / "own" / "sweep" / "mine.yaml").write_text(text)
    run = gvc("sweep", "mine", *tiny, "--config-dir", "own", "--dry-run")
    assert run.code == 2
    assert "sweep=mine lacks variant, model, optim.lr in hydra.sweeper.params" in run.err


def test_all_stages_have_the_one_folder_that_a_time_names(gvc, tiny):
    words = ["sweep", "equal-tokens", *tiny, "variant=dense-bias", "model=debug", "optim.lr=1e-3", "seed=0,1"]
    run = gvc(*words, "train.max_steps=1", "hydra.sweep.dir=runs/${now:%H%M%S%f}")
    assert run.code == 0, run.err
    (folder,) = Path("runs").iterdir()
    assert run.run_dir == folder
    assert len(results(folder.name)) == 2
