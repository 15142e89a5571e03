"""Slots: as many jobs at once as there are, whoever starts them, and a GPU of its own for each."""

import subprocess
import sys
import time

import pytest
from filelock import FileLock, Timeout
from grouped_lm.cli.compose.sweep_plan import share_of_job
from omegaconf import OmegaConf

from grouped_lm.jobs.device_slots import Share, take_slot

HOLDER = """
import sys, time
from pathlib import Path
from grouped_lm.jobs.device_slots import take_slot
with take_slot(["a", "b"], Path(sys.argv[1])) as name:
    print(name, flush=True)
    time.sleep(60)
"""


def test_a_slot_is_held_across_processes_and_free_when_its_holder_dies(tmp_path):
    holders = []
    for expected in ("a", "b"):
        holders.append(
            subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        )
        assert holders[-1].stdout.readline().strip() == expected
    waiting = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    time.sleep(1.0)
    assert waiting.poll() is None
    holders[1].kill()
    assert waiting.stdout.readline().strip() == "b"
    for process in (*holders, waiting):
        process.kill()
        process.wait()


def test_each_job_gets_a_gpu_of_its_own_and_then_a_second_round(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7f-a")
    share = Share(threads=3, per_gpu=2)
    assert share.slot_names("auto") == ["gpu-2-0", "gpu-GPU-7f-a-0", "gpu-2-1", "gpu-GPU-7f-a-1"]
    with share.environment("auto", tmp_path) as first, share.environment("cuda", tmp_path) as second:
        assert first == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "2"}
        assert second["CUDA_VISIBLE_DEVICES"] == "GPU-7f-a"
        with share.environment("auto", tmp_path) as third:
            assert third["CUDA_VISIBLE_DEVICES"] == "2"
    with share.environment("cpu", tmp_path) as on_cpu:
        assert on_cpu == {"OMP_NUM_THREADS": "3"}


def test_a_job_of_several_processes_gets_a_slot_for_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    share = Share(threads=8, per_gpu=2)
    with share.environment("auto", tmp_path, processes=2) as both, share.environment("auto", tmp_path) as third:
        assert both == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "0,1"}
        assert third["CUDA_VISIBLE_DEVICES"] == "2"
    with Share(threads=2, cpu_slots=2).environment("cpu", tmp_path, processes=3) as rest:
        assert rest == {"OMP_NUM_THREADS": "2"}  # all that there are
        with (
            pytest.raises(Timeout),
            FileLock(tmp_path / "cpu-1.lock", timeout=0),
        ):
            raise AssertionError("both slots are held")


def test_a_slot_is_let_go_when_its_job_fails(tmp_path):
    with pytest.raises(RuntimeError), take_slot(["a"], tmp_path):
        raise RuntimeError
    with take_slot(["a"], tmp_path) as name:
        assert name == "a"


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ({"_target_": "x.BasicLauncher"}, Share(per_gpu=1)),
        ({"_target_": "x.JoblibLauncher", "n_jobs": 2}, Share(threads=2, per_gpu=1)),
        ({"_target_": "x.JoblibLauncher", "n_jobs": -1}, Share(threads=1, per_gpu=2)),
        ({"_target_": "x.LocalLauncher", "cpus_per_task": None}, Share(threads=1, cpu_slots=4, per_gpu=1)),
        ({"_target_": "x.LocalLauncher", "cpus_per_task": 2}, Share(threads=2, cpu_slots=2, per_gpu=1)),
        ({"_target_": "x.SlurmLauncher", "cpus_per_task": 8}, Share(threads=8)),
        ({"_target_": "x.SlurmLauncher", "cpus_per_gpu": 8, "gpus_per_node": 2}, Share(threads=16)),
        ({"_target_": "x.RayLauncher", "ray": {"remote": {"num_cpus": 2}}}, Share(threads=2)),
    ],
)
def test_the_share_of_a_job_under_each_launcher(monkeypatch, launcher, expected):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert share_of_job(OmegaConf.create(launcher)) == expected
