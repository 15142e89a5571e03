"""Sweeps finish: whatever is killed, fails or changes, every job ends exactly once."""

import csv
import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from gate import Gate
from grouped_lm.cli.compose.compose import HydraFlags, composing
from grouped_lm.cli.compose.explain import missing_plugin
from grouped_lm.cli.compose.sweep_plan import plan_sweep

from grouped_lm.config import Config, config_to_dict
from grouped_lm.errors import BusyError
from grouped_lm.heads import DenseConfig, GroupedConfig
from grouped_lm.jobs import sweep
from grouped_lm.jobs.sweep import BUSY_EXIT, SweepLimits, driver_ledger, job_state, run_job
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.system.files import write_json

GVC = str(Path(sys.executable).parent / "gvc")


def results(folder: Path) -> dict[str, dict]:
    """Final figures by job, without what a clock or an allocator says."""
    found = {}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        clockless = {k: v for k, v in result.items() if not k.startswith(("throughput", "time", "memory", "commit"))}
        found[path.parent.name] = clockless
    return found


def clockless_table(folder: Path) -> list[dict[str, str]]:
    """The sweep's CSV without what a clock or an allocator says, which also decides the front."""
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    unlike = ("throughput", "time", "memory", "commit", "front", "sweep")
    return [{key: value for key, value in row.items() if not key.startswith(unlike)} for row in rows]


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


DENSE, GROUPED = Config(head=DenseConfig()), Config(head=GroupedConfig())


@pytest.fixture
def child(monkeypatch):
    """Let a job's process be a function: it leaves what a training leaves, and gives its exit code."""
    started = []

    def run(run_dir: Path, environment: dict[str, str]) -> int:
        started.append(run_dir)
        assert len(started) < 5, "it tries for ever"
        try:
            with RunFolder(run_dir).lock():
                write_json(run_dir / "config.json", json.loads((run_dir / "job.json").read_text()))
                write_json(run_dir / "result.json", {"state": COMPLETE, "val/loss": 1.0})
        except BusyError:
            return BUSY_EXIT
        return 0

    monkeypatch.setattr(sweep, "_run_child", run)
    return started


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


@pytest.mark.parametrize("known_by", ["config.json", "job.json"])
@pytest.mark.parametrize("lock", ["seed=0/.lock", ".seed=0.lock"], ids=["trainer", "driver"])
def test_a_folder_in_which_another_config_is_trained_is_left_alone(tmp_path, child, capsys, lock, known_by):
    run_dir = tmp_path / "seed=0"
    run_dir.mkdir()
    write_json(run_dir / known_by, config_to_dict(DENSE))
    before = files_below(tmp_path)
    with FileLock(tmp_path / lock):
        assert run_job(GROUPED, run_dir) == "failed"
    assert files_below(tmp_path) == before
    assert child == []
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{run_dir} is in use by another gvc with another config" in said
    assert "give another hydra.sweep.dir" in said

    assert run_job(GROUPED, run_dir) == "complete"  # nobody holds it now
    assert len(list((tmp_path / ".replaced").iterdir())) == 1


def test_a_job_of_another_driver_is_left_to_it(tmp_path, child):
    write_json(tmp_path / "job.json", config_to_dict(DENSE))
    with FileLock(tmp_path.parent / f".{tmp_path.name}.lock"):
        assert run_job(DENSE, tmp_path) == "running"
    assert child == []
    with RunFolder(tmp_path).lock():
        assert run_job(DENSE, tmp_path) == "running"
    assert run_job(DENSE, tmp_path, wait=True) == "complete"


def test_a_folder_that_lost_its_config_is_known_by_its_job(tmp_path, child):
    run_dir = tmp_path / "seed=0"
    assert job_state(DENSE, run_dir) == "new"
    run_dir.mkdir()
    write_json(run_dir / "job.json", config_to_dict(DENSE))
    assert job_state(DENSE, run_dir) == "new"
    write_json(run_dir / "result.json", {"state": "failed", "reason": "diverged"})
    assert job_state(DENSE, run_dir) == "failed"
    assert job_state(GROUPED, run_dir) == "changed"
    (run_dir / "job.json").write_text("{}")
    assert job_state(DENSE, run_dir) == "changed"
    (run_dir / "job.json").unlink()
    assert job_state(DENSE, run_dir) == "failed"
    (run_dir / "checkpoints").mkdir()  # of who knows what
    assert job_state(DENSE, run_dir) == "changed"
    assert run_job(DENSE, run_dir) == "complete"


def test_a_sweep_goes_on_past_a_folder_that_another_config_has(gvc, tiny, child):
    folder = RunFolder(Path("s/seed=0"))
    with folder.lock():
        write_json(folder.job, config_to_dict(DENSE))
        outcome = gvc("sweep", "seeds", *tiny, "seed=0,1", "head=grouped", "hydra.sweep.dir=s")
    assert outcome.code == 1
    assert "s/seed=0 is in use by another gvc with another config" in outcome.err
    last = "gvc: error: 1 of 2 jobs are not done (seed=0): give another hydra.sweep.dir, another config has seed=0"
    assert outcome.err.splitlines()[-1] == last
    assert json.loads(folder.job.read_text()) == config_to_dict(DENSE)
    assert job_state(DENSE, folder.path) == "new"
    assert json.loads(Path("s/seed=1/result.json").read_text())["state"] == "complete"


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
    assert re.search(r"^seeds +6 jobs ", listed, re.M)
    assert len(listed.splitlines()) == len(list((Path(__file__).parents[2] / "conf" / "sweep").glob("*.yaml")))


def test_presets_of_a_folder_of_the_users_own_are_listed(gvc, tmp_path):
    own = tmp_path / "own" / "sweep"
    own.mkdir(parents=True)
    text = "# @package _global_\n# Two seeds of mine.\nhydra:\n  sweeper:\n    params:\n      seed: 0,1\n"
    (own / "mine.yaml").write_text(text)
    listed = gvc("sweep", "--list", "--config-dir", str(own.parent)).out
    assert re.search(r"^mine +2 jobs  Two seeds of mine\.", listed, re.M)
    assert "group-size" in listed


def test_the_list_of_presets_fits_a_terminal(gvc, monkeypatch):
    monkeypatch.setattr("grouped_lm.system.console.terminal_width", lambda: 80)
    lines = gvc("sweep", "--list").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(" " * 28) for line in lines)


@pytest.mark.parametrize(
    ("n_seeds", "kills", "seed"), [(2, 2, 0), pytest.param(6, 15, 1, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_a_driver_killed_again_and_again_completes_every_job_once(gvc, tiny, n_seeds, kills, seed):
    seeds = ",".join(map(str, range(n_seeds)))
    words = ["sweep", "heads", *tiny, "head=dense,grouped", f"seed={seeds}", "train.checkpoint_every_steps=2"]
    assert gvc(*words, "hydra.sweep.dir=whole").code == 0
    rng = random.Random(seed)
    ended: dict[str, int] = {}
    for _ in range(kills):
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
    assert len(results(Path("cut"))) == 2 * n_seeds
    assert clockless_table(Path("cut")) == clockless_table(Path("whole"))


def test_a_job_killed_from_outside_is_named_and_the_rest_finish(gvc, tiny):
    gate = Gate(2)
    words = [GVC, "sweep", "seeds", *tiny, "head=dense", "seed=0,1", "train.checkpoint_every_steps=2"]
    driver = subprocess.Popen(
        [*words, "hydra.sweep.dir=s"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=gate.environment,
    )
    gate.wait(driver)
    found = subprocess.run(
        ["pgrep", "-f", f"grouped_lm.jobs.worker.*{Path.cwd()}.*seed=0"], capture_output=True, text=True
    )
    (worker,) = found.stdout.split()
    subprocess.run(["kill", "-USR2", worker], check=True)  # SLURM sends this one before the time limit: it does nothing
    subprocess.run(["kill", "-9", worker], check=True)
    _, err = driver.communicate(timeout=600)
    assert driver.returncode == 1
    assert "1 of 2 jobs failed: seed=0: killed by signal 9 (SIGKILL)" in err
    assert results(Path("s"))["seed=1"]["state"] == "complete"


def test_two_drivers_share_the_jobs(gvc, tiny):
    words = [GVC, "sweep", "heads", *tiny, "head=dense,grouped", "seed=0,1", "hydra.sweep.dir=s"]
    drivers = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [driver.communicate(timeout=600)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], errors
    assert {row["state"] for row in results(Path("s")).values()} == {"complete"}
    for folder in Path("s").glob("head=*"):
        steps = [json.loads(line)["trainer/step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == [2, 4, 6, 8, 8]


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """The figures of a small sweep over the basic launcher."""
    folder = tmp_path_factory.mktemp("basic") / "s"
    words = [GVC, "sweep", "heads", *tiny, "head=dense,grouped", f"hydra.sweep.dir={folder}"]
    subprocess.run(words, check=True, capture_output=True)
    return results(folder)


@pytest.mark.parametrize("launcher", ["local_2", "submitit_local", "ray"])
def test_every_launcher_gives_the_same_figures(gvc, tiny, unbroken, launcher):
    words = [*tiny, "head=dense,grouped", f"hydra/launcher={launcher}", "hydra.sweep.dir=s"]
    # a process of its own: joblib and Ray keep their workers, and with them the folder in which an earlier test stood
    outcome = subprocess.run([GVC, "sweep", "heads", *words], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert results(Path("s")) == unbroken
    assert not list(Path("s").glob(".driver-*"))


def test_a_running_ray_keeps_its_own_object_store(gvc, tiny):
    """Hydra's launcher gives a size, which Ray refuses when it runs already."""
    word, words = "+hydra.launcher.ray.init.object_store_memory=null", [*tiny, "head=dense", "hydra/launcher=ray"]
    assert word not in plan_sweep("seeds", words, HydraFlags()).overrides
    assert word in plan_sweep("seeds", [*words, "hydra.launcher.ray.init.address=auto"], HydraFlags()).overrides


def test_slurm_without_slurm_is_refused_before_the_first_job(gvc, tiny, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    outcome = gvc("sweep", "heads", *tiny, "hydra/launcher=slurm_gpu")
    assert outcome.code == 2
    assert "no sbatch here" in outcome.err
    assert not Path("runs").exists()


def test_a_plugin_that_is_not_installed_is_named_with_its_extra():
    assert "grouped-lm[ray]" in (missing_plugin("In 'config': Could not find 'hydra/launcher/ray'") or "")
    assert missing_plugin("Could not find 'model/nosuch'") is None


def test_a_killed_search_goes_on_with_the_trials_that_are_left(gvc, tiny):
    words = ["sweep", "lr-search", *tiny, "head=grouped", "hydra.sweep.dir=s"]
    driver = subprocess.Popen([GVC, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 600
    while len(list(Path("s").glob("lr=*/job.json"))) < 5 and time.monotonic() < until:
        time.sleep(0.02)
    driver.kill()  # the fifth has begun, or a later one on a slow machine
    driver.wait()
    before = {
        name: stamp for name, stamp in stamps(Path("s")).items() if results(Path("s"))[name]["state"] == "complete"
    }
    assert 4 <= len(before) < 8
    started = {path.parent.name for path in Path("s").glob("lr=*/job.json")}

    assert gvc(*words, "--only-failed").code == 2
    outcome = gvc(*words)
    assert outcome.code == 0, outcome.err
    after = stamps(Path("s"))
    assert len(after) == 8
    assert before.items() <= after.items()
    assert started <= after.keys()  # the fifth was finished, with its own value
    assert gvc(*words).code == 0
    assert stamps(Path("s")) == after


@pytest.mark.parametrize("ends", ["interval(-1,1)", "interval(1e-4,nan)"])
def test_a_search_over_values_out_of_range_is_refused(gvc, tiny, ends):
    outcome = gvc("sweep", "lr-search", *tiny, f"optim.lr={ends}")
    assert outcome.code == 2
    assert not Path("runs").exists()


def test_the_ledger_of_a_killed_driver_is_removed_by_the_next_one(tmp_path):
    (tmp_path / ".driver-dead").mkdir()
    with driver_ledger(tmp_path) as mine:
        assert list(tmp_path.glob(".driver-*")) == [mine]
        with driver_ledger(tmp_path) as other:
            assert mine.exists()
            assert other != mine
    assert not list(tmp_path.glob(".driver-*"))


def test_a_job_that_outlives_its_driver_ends_all_the_same(tmp_path):
    limits = SweepLimits(tmp_path / "gone", max_jobs=1)
    assert not limits.allow("new")
    assert SweepLimits(tmp_path / "gone").allow("new")
    limits.note("complete", tmp_path)


def test_a_sweep_in_wandb_has_its_table_and_plots(gvc, tiny):
    words = [word for word in tiny if word != "tracking=none"]
    words = [GVC, "sweep", "heads", *words, "head=grouped", "head.group_size=4,8", "hydra.sweep.dir=s"]
    words += ["tracking.init_timeout_s=120"]
    # a process of its own: W&B's service outlives a test
    swept = subprocess.run(words, check=True, capture_output=True, text=True)
    (record,) = Path("s/wandb").glob("offline-run-*")
    command = [str(Path(GVC).parent / "wandb"), "leet", "inspect", "--json", str(record)]
    read = subprocess.run(command, capture_output=True, text=True)
    assert "sweep/results" in read.stdout, swept.stderr + read.stderr
    assert "sweep/perplexity-by-group-size" in read.stdout


def test_32_runs_of_one_second_have_32_folders():
    with composing(HydraFlags()) as compose_with:
        folders = {compose_with([], return_hydra_config=True).hydra.run.dir for _ in range(32)}
    assert len(folders) == 32


@pytest.mark.long
def test_32_runs_started_together_have_32_folders(gvc, tiny):
    runs = [
        subprocess.Popen([GVC, "train", *tiny], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(32)
    ]
    folders = {run.communicate()[0].split()[-1] for run in runs}
    assert {run.returncode for run in runs} == {0}
    assert len(folders) == 32
    assert len(list(Path("runs").iterdir())) == 32


@pytest.mark.long
def test_diverging_starved_and_killed_jobs_in_one_sweep_are_named_and_run_again(gvc, tiny):
    words = ["sweep", "seeds", *tiny, "head=grouped", "seed=0,1", "train.max_steps=1500", "hydra.sweep.dir=s"]
    words += ["optim.warmup_steps=0", "optim.grad_clip=0", "train.micro_batch_size=2,200000", "optim.lr=1e-3,1e9"]
    limited = f"ulimit -v 8000000; exec {GVC} {' '.join(words)}"
    driver = subprocess.Popen(["bash", "-c", limited], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    victim = Path("s/lr=0.001,seed=1,micro_batch_size=2")
    while not (victim / "metrics.jsonl").exists() and driver.poll() is None:
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-f", f"grouped_lm.jobs.worker.*{victim}"], capture_output=True, text=True)
    subprocess.run(["kill", "-9", *found.stdout.split()], check=True)
    _, err = driver.communicate(timeout=600)
    assert driver.returncode == 1
    table = (Path("s") / "results.md").read_text()
    for reason in ("killed by signal 9", "diverged at step", "out of memory with train.micro_batch_size=200000"):
        assert reason in err
        assert reason in table
    states = {name: row["state"] for name, row in results(Path("s")).items()}
    assert [name for name, state in states.items() if state == "complete"] == ["lr=0.001,seed=0,micro_batch_size=2"]
    before = stamps(Path("s"))
    again = subprocess.run(["bash", "-c", f"{limited} --only-failed"], capture_output=True, text=True)
    assert again.returncode == 1  # two reasons are still there
    after = results(Path("s"))
    assert after["lr=0.001,seed=1,micro_batch_size=2"]["state"] == "complete"
    changed = {name for name, stamp in stamps(Path("s")).items() if stamp != before[name]}
    assert changed == {name for name, state in states.items() if state == "failed"}


def test_cases_U5_ctrl_c_says_the_folder_the_jobs_and_the_command(gvc, tiny):
    words = ["sweep", "seeds", *tiny, "head=dense", "seed=0,1,2", "hydra.sweep.dir=s"]
    assert gvc(*words, "--max-jobs", "1").code == 0
    gate = Gate(2)
    driver = subprocess.Popen(
        [GVC, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=gate.environment
    )
    gate.wait(driver)
    driver.send_signal(signal.SIGINT)
    gate.open()
    _, err = driver.communicate(timeout=600)
    assert driver.returncode == 130
    lines = err.splitlines()
    said = next(at for at, line in enumerate(lines) if line.startswith("gvc: stopped: "))
    stopped = re.fullmatch(r"gvc: stopped: ([12]) of 3 jobs are complete in s; to continue:", lines[said])
    assert stopped  # the second job may be complete before the signal reaches it
    assert shlex.split(lines[said + 1]) == ["gvc", *words]
    assert f"{stopped[1]} of 3 runs complete." in Path("s/results.md").read_text()
