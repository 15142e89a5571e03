"""Cases of sweeps and searches: another search in the same folder, failed trials, jobs of other drivers."""

from pathlib import Path

import pytest
from filelock import FileLock

from grouped_lm.config import Config
from grouped_lm.heads import DenseConfig
from grouped_lm.jobs.device_slots import Share
from grouped_lm.jobs.sweep import SweepLimits, driver_lock, run_limited


def stamps(folder: str) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(folder).glob("*/result.json")}


def search(tiny: list[str], *words: str) -> list[str]:
    return ["sweep", "lr-search", *tiny, "head=dense", "hydra.sweeper.n_trials=1", "train.max_steps=1", *words]


def test_a_search_with_other_settings_needs_a_folder_of_its_own(gvc, tiny):
    words = search(tiny, "hydra.sweep.dir=s=1")  # `=` in the name of the study's file
    assert gvc(*words).code == 0
    first = stamps("s=1")
    for changes, said in (
        (["train.max_steps=3", "model.n_layer=1"], "model.n_layer: 2 -> 1, train.max_steps: 1 -> 3"),
        (["optim.lr=1e-3", "seed=1,2"], "optim.lr: "),
    ):
        refused = gvc(*words, *changes)
        assert refused.code == 2
        assert f"gvc: error: s=1 has trials of another search ({said}" in refused.err
        assert "give another hydra.sweep.dir" in refused.err
    assert gvc(*words, "train.log_every_steps=3", "hydra.sweeper.n_trials=2").code == 0  # the same search, longer
    assert len(stamps("s=1")) == 2
    assert first.items() <= stamps("s=1").items()


def test_a_failed_trial_is_tried_again(gvc, tiny):
    words = search(tiny, "optim.lr=choice(1e-3)", "hydra.sweep.dir=s")
    in_the_way = Path("s/lr=0.001/metrics.jsonl")
    in_the_way.mkdir(parents=True)
    failed = gvc(*words)
    assert failed.code == 1
    assert "1 of 1 jobs failed: lr=0.001: " in failed.err
    in_the_way.rmdir()
    assert gvc(*words).code == 0
    done = stamps("s")
    assert gvc(*words).code == 0
    assert stamps("s") == done


def test_a_diverged_trial_has_its_answer(gvc, tiny):
    wild = ["optim.lr=interval(1e8,1e9)", "optim.warmup_steps=0", "optim.grad_clip=0", "train.max_steps=8"]
    words = search(tiny, *wild, "hydra.sweep.dir=s")
    assert gvc(*words).code == 1
    done = stamps("s")
    outcome = gvc(*words)
    assert outcome.code == 1
    assert "diverged at step" in outcome.err
    assert stamps("s") == done


def test_the_folder_of_a_sweep_may_name_a_time(gvc, tiny):
    words = ["sweep", "seeds", *tiny, "head=dense", "seed=0,1", "train.max_steps=1"]
    outcome = gvc(*words, "hydra.sweep.dir=s/${now:%H%M%S%f}")
    assert outcome.code == 0, outcome.err
    (folder,) = Path("s").iterdir()
    assert outcome.run_dir == folder
    assert set(stamps(str(folder))) == {"seed=0", "seed=1"}


def test_a_job_of_another_driver_uses_up_no_start(tmp_path):
    run_dir, limits = tmp_path / "s" / "seed=0", SweepLimits(tmp_path, max_jobs=1)
    run_dir.mkdir(parents=True)
    with FileLock(driver_lock(run_dir)):
        run_limited(Config(head=DenseConfig()), run_dir, limits, False, Share())
    assert limits.left_to_others(run_dir)
    assert limits.allow("new")
    assert not limits.allow("new")


def test_the_reason_of_a_worker_that_ends_before_it_trains_is_shown(gvc, tiny):
    words = [*tiny, "head=dense", "seed=0", "train.max_steps=2"]
    assert gvc("train", *words, "hydra.run.dir=s/only").code == 0
    Path("s/only/result.json").write_text('{"state": "interrupted", "trainer/step": 2}')  # as Ctrl-C leaves it
    outcome = gvc("sweep", "seeds", *words, "train.resume=never", "hydra.sweep.dir=s")
    assert outcome.code == 1
    assert "1 of 1 jobs failed: only: gvc: error: " in outcome.err
    assert "s/only already holds a run: give another hydra.run.dir, or train.resume=auto" in outcome.err


@pytest.mark.parametrize("name", ["seeds", "lr-search"])
def test_a_sweep_has_no_run_folder(gvc, tiny, workdir, name):
    outcome = gvc("sweep", name, *tiny, "hydra.run.dir=x")
    assert outcome.code == 2
    assert "gvc sweep has hydra.sweep.dir, the folder of all jobs, and not hydra.run.dir" in outcome.err
    assert list(workdir.iterdir()) == []


def test_a_pattern_of_choices_is_expanded(gvc, tiny):
    outcome = gvc("train", "-m", *tiny, "head=glob(den*)", "train.max_steps=1", "hydra.sweep.dir=s")
    assert outcome.code == 0, outcome.err
    assert len(stamps("s")) == 1
    refused = gvc("train", "-m", *tiny, "head=glob(den*)", "train.max_steps=0")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "train.max_steps must be in [1" in refused.err
