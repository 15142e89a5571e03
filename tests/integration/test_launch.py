"""`gvc train train.devices=2`: the launcher, what it does when a process is lost, and machines that find each other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gate import Gate
from run_outputs import curve
from test_parallel import assert_same_curve

from grouped_lm.config import TrainConfig
from grouped_lm.errors import ConfigError, DiskError, GvcError
from grouped_lm.jobs.launch import LOGS, rendezvous_endpoint
from grouped_lm.runs.folder import RunFolder

GVC = str(Path(sys.executable).parent / "gvc")
LONG = ["train.max_steps=60", "train.checkpoint_every_steps=10", "train.log_every_steps=5"]


def workers_of(pid: int) -> dict[int, int]:
    """The processes that a launcher has started, by rank."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                environment = (stat.parent / "environ").read_bytes().split(b"\0")
                ranks = [int(word[5:]) for word in environment if word.startswith(b"RANK=")]
                found |= {rank: int(stat.parent.name) for rank in ranks}
        except (OSError, ValueError):
            continue
    return found


def start(*words: str, **environment: str) -> subprocess.Popen:
    """Call `gvc` as nohup does."""
    made = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
    words = ("nohup", GVC, *words)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=made)


def test_cases_K1_a_killed_process_is_restarted_and_the_run_ends_with_the_same_curve(gvc, tiny):
    words = ["train", *tiny, *LONG]
    assert gvc(*words, "hydra.run.dir=one").code == 0
    gate = Gate(20)
    process = start(*words, "train.devices=2", "train.resume=never", "hydra.run.dir=two", **gate.environment)
    gate.wait(process)
    process.send_signal(signal.SIGHUP)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    gate.open()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.splitlines() == [str(Path("two").absolute())]
    assert "a process was lost; restart 1, continuing from step" in err
    assert "Traceback" not in err.split("restart 1")[1]
    assert_same_curve(Path("two"), Path("one"))
    result = json.loads(Path("two/result.json").read_text())
    assert (result["state"], result["processes"]) == ("complete", 2)


def test_cases_K1_a_stop_saves_and_another_number_of_processes_goes_on(gvc, tiny):
    words = ["train", *tiny, *LONG, "hydra.run.dir=run"]
    gate = Gate(10)
    process = start(*words, "train.devices=2", "train.strategy=fsdp2", **gate.environment)
    gate.wait(process)
    workers = workers_of(process.pid).values()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert json.loads(Path("run/result.json").read_text())["state"] == "interrupted"
    assert gvc(*words).code == 0
    assert [row["trainer/step"] for row in curve(Path("run"))] == [*range(5, 65, 5), 60]


def test_a_stop_whose_save_fails_says_so(tiny, workdir):
    words = ["train.max_steps=100000", "train.checkpoint_every_steps=100000", "train.devices=2", "hydra.run.dir=run"]
    process = start("train", *tiny, *words)
    until = time.monotonic() + 60
    while not Path("run/metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    Path("run/checkpoints").write_text("no folder")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == DiskError.exit_code, err
    assert "gvc: error: " in err.splitlines()[-1]
    assert json.loads(Path("run/result.json").read_text())["state"] == "failed"


def test_a_second_launcher_leaves_the_folder_as_it_is(gvc, tiny):
    with RunFolder(Path("run")).lock():
        done = gvc("train", *tiny, "hydra.run.dir=run", "train.devices=2")
    assert done.code == 3, done.err
    assert "is in use by another gvc" in done.err
    assert not {"result.json", "config.json", "job.json"} & {path.name for path in Path("run").iterdir()}


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> dict[str, str]:
    """What a job of two machines finds in SLURM's environment; its one command is a stand-in that names this one."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho localhost\necho other\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    found = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    for key, value in found.items():
        monkeypatch.setenv(key, value)
    return found


def test_machines_of_a_slurm_job_meet_at_its_first(slurm, monkeypatch):
    train = TrainConfig(devices=4, nodes=2)
    name, endpoint = rendezvous_endpoint(train)
    assert name == f"gvc-{os.getpid()}-0"
    assert endpoint == f"localhost:{20_000 + os.getpid() % 20_000}"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert rendezvous_endpoint(train)[0].endswith("-3")
    with pytest.raises(ConfigError, match="this SLURM job has 2"):
        rendezvous_endpoint(TrainConfig(devices=2, nodes=4))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GvcError, match="scontrol cannot say"):
        rendezvous_endpoint(train)
    monkeypatch.delenv("SLURM_JOB_NUM_NODES")
    with pytest.raises(ConfigError, match="this is no SLURM job"):
        rendezvous_endpoint(train)
    assert rendezvous_endpoint(TrainConfig(devices=2))[1] == "localhost:0"


def test_two_machines_train_one_model(gvc, tiny, slurm):
    words = ["train", *tiny, "hydra.run.dir=run", "train.nodes=2"]
    both = [start(*words, **slurm) for _ in range(2)]
    said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert json.loads(Path("run/result.json").read_text())["processes"] == 2
    assert len(list(Path("run", LOGS).glob("*"))) == 2
    assert gvc("train", *tiny, "hydra.run.dir=one").code == 0
    assert_same_curve(Path("run"), Path("one"))


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_lost_on_one_of_two_machines_is_restarted(rank, gvc, tiny, slurm):
    words = ["train", *tiny, *LONG, "train.nodes=2", "hydra.run.dir=run"]
    gate = Gate(20)
    both = [start(*words, **gate.environment | slurm) for _ in range(2)]
    gate.wait(both[0])
    (lost,) = [pids[rank] for pids in map(workers_of, (both[0].pid, both[1].pid)) if rank in pids]
    os.kill(lost, signal.SIGKILL)
    gate.open()
    said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "a process was lost; restart 1, continuing from step" in said[0][1] + said[1][1]
    assert gvc("train", *tiny, *LONG, "hydra.run.dir=one").code == 0
    assert_same_curve(Path("run"), Path("one"))


@pytest.mark.long
def test_machines_that_do_not_meet_end_in_one_line(gvc, tiny, slurm, tmp_path):
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho nowhere.invalid\n")
    done = gvc("train", *tiny, "hydra.run.dir=run", "train.nodes=2")
    assert done.code == GvcError.exit_code
    assert "not all of 2 machines (train.nodes) met at nowhere.invalid:" in done.err.splitlines()[-1]


@pytest.mark.long
def test_processes_that_torchrun_has_started_share_one_folder(tiny, workdir):
    torchrun = [str(Path(GVC).parent / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python", GVC]
    done = subprocess.run([*torchrun, "train", *tiny], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run_dir,) = Path("runs").iterdir()
    assert done.stdout.splitlines() == [str(run_dir.absolute())]
    assert json.loads((run_dir / "result.json").read_text())["processes"] == 2
    refused = subprocess.run([*torchrun, "sweep", "seeds", *tiny], capture_output=True, text=True)
    assert "leave torchrun out" in refused.stderr


@pytest.mark.long
def test_jobs_of_a_sweep_with_two_processes_each(gvc, tiny):
    words = ["sweep", "seeds", *tiny, "head=dense,grouped", "seed=0", "hydra.sweep.dir=s"]
    assert gvc(*words, "train.devices=2", "hydra/launcher=submitit_local").code == 0
    for folder in Path("s").glob("head=*"):
        assert json.loads((folder / "result.json").read_text())["processes"] == 2
