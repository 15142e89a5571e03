"""Sweeps finish: whatever is killed, fails or changes, every job ends exactly once."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

GVC = str(Path(sys.executable).parent / "gvc")


def results(folder: Path) -> dict[str, dict]:
    """Final figures by job, without what a clock or an allocator says."""
    found = {}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        clockless = {k: v for k, v in result.items() if not k.startswith(("throughput", "time", "memory", "commit"))}
        found[path.parent.name] = clockless
    return found


def stamps(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def test_a_sweep_is_run_once_and_its_folder_is_its_memory(gvc, tiny):
    words = ["sweep", "heads", *tiny, "seed=0,1", "head=dense,grouped"]  # a preset's values may be replaced
    dry = gvc(*words, "--dry-run")
    assert dry.out.count("new ") == 4
    assert not Path("runs").exists()

    assert gvc(*words, "--max-jobs", "3").code == 0
    folder = Path("runs/heads")
    first = stamps(folder)
    assert len(first) == 3
    outcome = gvc(*words)
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "runs/heads"
    second = stamps(folder)
    assert set(second) == {f"head={head},seed={seed}" for head in ("dense", "grouped") for seed in (0, 1)}
    assert all(second[name] == stamp for name, stamp in first.items())
    assert {row["state"] for row in results(folder).values()} == {"complete"}
    table = (folder / "results.csv").read_text().splitlines()
    assert len(table) == 5
    assert (folder / "results.md").read_text().count("| complete |") == 4

    changed = gvc(*words, "seed=0", "optim.lr=5e-3")
    assert changed.code == 0
    assert changed.err.count("was made with another config") == 2
    assert len(list((folder / ".replaced").iterdir())) == 2
    assert len(json.loads(gvc("ls", str(folder), "--json").out)) == 4


def test_a_failing_job_stops_nobody(gvc, tiny):
    words = ["sweep", "seeds", *tiny, "head=dense", "seed=0", "optim.warmup_steps=0", "optim.grad_clip=0"]
    words += ["optim.lr=1e-3,1e9"]
    outcome = gvc(*words)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("gvc: error: 1 of 2 jobs failed: lr=1000000000.0: diverged at step")
    folder = Path("runs/seeds")
    assert [row["state"] for row in results(folder).values()] == ["complete", "failed"]
    assert "diverged" in (folder / "results.md").read_text()
    before = stamps(folder)
    assert gvc(*words, "--only-failed").code == 1
    after = stamps(folder)
    assert before["lr=0.001"] == after["lr=0.001"]
    assert before["lr=1000000000.0"] != after["lr=1000000000.0"]


def test_fail_fast_starts_nothing_after_a_failure(gvc, tiny):
    words = [*tiny, "head=dense", "seed=0", "optim.warmup_steps=0", "optim.grad_clip=0", "optim.lr=1e9,1e-3"]
    assert gvc("sweep", "seeds", *words, "--fail-fast").code == 1
    assert len(stamps(Path("runs/seeds"))) == 1


def test_out_of_memory_is_said_with_what_to_try(gvc, tiny):
    words = ["sweep", "seeds", *tiny, "head=grouped", "seed=0", "train.micro_batch_size=200000", "train.max_steps=1"]
    limited = f"ulimit -v 8000000; exec {GVC} {' '.join(words)}"  # 8 GB, so that the machine itself is not filled
    outcome = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert outcome.returncode == 1
    assert "out of memory with train.micro_batch_size=200000" in outcome.stderr


@pytest.mark.parametrize("override", ["head.group_size=4,60000", "train.max_steps=4,0", "nosuch=1"])
def test_a_bad_value_anywhere_is_refused_before_the_first_job(gvc, tiny, override):
    outcome = gvc("sweep", "seeds", *tiny, "head=grouped", override)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert not Path("runs").exists()


def test_unknown_and_missing_presets(gvc):
    assert "did you mean group-size?" in gvc("sweep", "groupsize").err
    assert gvc("sweep").code == 2
    listed = gvc("sweep", "--list").out
    assert "group-size" in listed
    assert "12 jobs" in listed


@pytest.mark.parametrize("seed", [0])
def test_a_driver_killed_again_and_again_completes_every_job_once(gvc, tiny, seed):
    words = ["sweep", "heads", *tiny, "head=dense,grouped", "seed=0,1", "train.checkpoint_every_steps=2"]
    assert gvc(*words, "hydra.sweep.dir=whole").code == 0
    rng = random.Random(seed)
    ended: dict[str, int] = {}
    for _ in range(2):
        driver = subprocess.Popen(
            [GVC, *words, "hydra.sweep.dir=cut"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(3, 12))
        driver.kill()
        driver.wait()
        now = {k: v for k, v in stamps(Path("cut")).items() if results(Path("cut"))[k]["state"] == "complete"}
        assert all(now[name] == stamp for name, stamp in ended.items())  # what has ended is never run again
        ended = now
    outcome = gvc(*words, "hydra.sweep.dir=cut")
    assert outcome.code == 0, outcome.err
    assert results(Path("cut")) == results(Path("whole"))


def test_a_job_killed_from_outside_is_named_and_the_rest_finish(gvc, tiny):
    words = [GVC, "sweep", "seeds", *tiny, "head=dense", "seed=0,1", "train.max_steps=1500", "hydra.sweep.dir=s"]
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not Path("s/seed=0/metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-f", f"grouped_lm.worker.*{Path.cwd()}.*seed=0"], capture_output=True, text=True)
    (worker,) = found.stdout.split()
    subprocess.run(["kill", "-9", worker], check=True)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert "1 of 2 jobs failed: seed=0: killed by signal 9 (SIGKILL)" in err
    assert results(Path("s"))["seed=1"]["state"] == "complete"


def test_two_drivers_share_the_jobs(gvc, tiny):
    words = [GVC, "sweep", "heads", *tiny, "head=dense,grouped", "seed=0,1", "hydra.sweep.dir=s"]
    drivers = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [driver.communicate(timeout=200)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], errors
    assert {row["state"] for row in results(Path("s")).values()} == {"complete"}
    for folder in Path("s").glob("head=*"):
        steps = [json.loads(line)["trainer/step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == [2, 4, 6, 8, 8]


def test_over_joblib(gvc, tiny):
    words = [*tiny, "head=dense,grouped", "hydra/launcher=local_2", "hydra.sweep.dir=s"]
    # a process of its own: joblib keeps its workers, and with them the folder in which an earlier test stood
    outcome = subprocess.run([GVC, "sweep", "heads", *words], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert {row["state"] for row in results(Path("s")).values()} == {"complete"}
