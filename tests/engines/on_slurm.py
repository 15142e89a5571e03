"""`make test-slurm`: runs and sweeps on a real SLURM controller with two nodes."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen, run

import slurm_cluster as slurm
from lab import GUIDE, Claims, Machine, assert_same_curve, enter, gate, lab, result, sh, texts, wait_for

HELD_AT = 8
"""The step at whose checkpoint a run is held, until the test has done what it wants to do."""


class Runs:
    """Jobs of the guide's own script, on two nodes with two processes each."""

    def __init__(self, machines: dict[str, Machine]) -> None:
        self.machines, self.words = machines, texts(Path("text").absolute())
        self.sweep = re.search(r"^gvc sweep .*hydra/launcher=slurm_gpu.*$", GUIDE.read_text(), re.MULTILINE)[0]  # type: ignore[index]
        self.sweep = self.sweep.replace("PARTITION", "normal")
        self.script = re.search(r"```\w*\n(#!/bin/bash\n.*?)```", GUIDE.read_text(), re.DOTALL)[1]  # type: ignore[index]
        sh(f"gvc train {' '.join(self.words)} hydra.run.dir=one")

    def submit(self, name: str, options: str = "", held: bool = True) -> str:
        """Submit the script with a run folder of its own, and return the number of the job."""
        script = self.script
        for here, there in {
            "gpus-per-node=8": "gpus-per-node=2",
            "cpus-per-task=64": "cpus-per-task=4",
            "train.devices=8 train.micro_batch_size=64": f"train.devices=2 {' '.join(self.words)}",
            "runs/large": name,
        }.items():
            assert here in script, f"the script of {GUIDE.name} has no {here} any more"
            script = script.replace(here, there)
        Path(f"{name}.sh").write_text(script)
        variables = " ".join(f"{key}={value}" for key, value in gate(name, HELD_AT).items()) if held else ""
        return sh(f"{variables} sbatch --parsable --output={name}.out {options} {name}.sh")

    def sweep_line(self, folder: str) -> list[str]:
        """Return the guide's sweep, with eight jobs of one machine and one process."""
        rates = f"optim.lr={','.join(RATES)}"
        return [*self.small_sweep(folder), "seed=0", "optim.warmup_steps=0", "optim.grad_clip=0", rates]

    def small_sweep(self, folder: str) -> list[str]:
        """Return the guide's sweep, with jobs of one machine and one process."""
        line = self.sweep.replace("train.devices=8 train.nodes=2 train.micro_batch_size=64", "train.devices=1")
        return [*line.split(), *self.words, f"hydra.sweep.dir={folder}"]

    def wait_until_held(self, name: str, job: str) -> None:
        def reached() -> bool:
            assert slurm.state(job) in ("PENDING", "RUNNING", "CONFIGURING"), Path(f"{name}.out").read_text()
            return Path(f"{name}.{HELD_AT}.gate.reached").exists()

        wait_for(f"step {HELD_AT} of {name}", reached, 90)

    def open(self, name: str) -> None:
        Path(f"{name}.{HELD_AT}.gate").touch()

    def finish(self, name: str, job: str, restarts: int) -> str:
        """Wait for the end of the job, and compare its curve with that of an unbroken run of one process."""
        wait_for(
            f"the end of job {job}",
            lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"),
        )
        said = Path(f"{name}.out").read_text()
        assert slurm.state(job) == "COMPLETED", f"job {job} is {slurm.state(job)}:\n{said}"
        assert result(name)["state"] == "complete", result(name)
        assert result(name)["processes"] == 4, result(name)["processes"]
        assert slurm.restarts(job) == restarts, f"{slurm.restarts(job)} restarts:\n{said}"
        return assert_same_curve(name, "one")


def two_nodes(runs: Runs) -> str:
    job = runs.submit("two")
    runs.wait_until_held("two", job)
    port = 20_000 + int(job) % 20_000
    listening = {name: f":{port} " in machine.sh("ss -ltnH") for name, machine in runs.machines.items()}
    assert listening == {"node1": True, "node2": False}, listening
    runs.open("two")
    return f"they met at node1:{port}; {runs.finish('two', job, 0)}"


def time_limit(runs: Runs) -> str:
    job = runs.submit("limit", "--time=30 --signal=TERM@30")
    runs.wait_until_held("limit", job)
    shorten(job)
    return runs.finish("limit", job, 1)


def shorten(job: str) -> None:
    """Let the time limit of a running job come near, and move it away when the job waits again."""
    begun = slurm.restarts(job)
    sh(f"scontrol update JobId={job} TimeLimit={(slurm.seconds(job) + 40) // 60 + 1}")
    wait_for(f"job {job} in the queue again", lambda: slurm.restarts(job) > begun)
    sh(f"scontrol update JobId={job} TimeLimit=30")


def cancelled(runs: Runs) -> str:
    job = runs.submit("cancelled")
    runs.wait_until_held("cancelled", job)
    sh(f"scancel {job}")
    wait_for("the end of the job", lambda: slurm.state(job) == "CANCELLED")
    assert result("cancelled")["state"] == "interrupted", result("cancelled")
    time.sleep(5)  # the script's last line must not queue it again
    assert slurm.state(job) == "CANCELLED", slurm.state(job)
    return f"saved, and not queued again; sbatch continues: {runs.finish('cancelled', runs.submit('cancelled'), 0)}"


def requeue(runs: Runs) -> str:
    job = runs.submit("requeue")
    runs.wait_until_held("requeue", job)
    sh(f"scontrol requeue {job}")
    return runs.finish("requeue", job, 1)


def preempt() -> None:
    """Run a job of the higher partition on both nodes."""
    sh("sbatch --wait -p urgent -N2 --exclusive -t 1 --output=urgent.out --wrap 'srun hostname'")


def preemption(runs: Runs) -> str:
    job = runs.submit("preempted")
    runs.wait_until_held("preempted", job)
    preempt()
    return runs.finish("preempted", job, 1)


def lost_node(runs: Runs) -> str:
    job = runs.submit("lost")
    runs.wait_until_held("lost", job)
    runs.machines["node2"].kill()
    wait_for("the end of the first try", lambda: slurm.state(job) == "PENDING")
    runs.machines["node2"].boot()
    slurm.start_node(runs.machines["node2"])
    return runs.finish("lost", job, 1)


RATES = ("0.001", "0.002", "0.003", "0.004", "0.005", "0.006", "0.007", "1e9")
"""The last one diverges."""


def eight_jobs(runs: Runs) -> str:
    """Run the guide's sweep with eight jobs of one machine, of which one is cancelled."""
    driver = Popen(runs.sweep_line("eight"), stdout=PIPE, stderr=STDOUT, text=True)
    wait_for("a complete job", lambda: any(result(path) for path in Path("eight").glob("lr=*")))
    pending = [job for job in slurm.jobs() if job["job_state"] == "PENDING"]
    assert pending, "all eight jobs run at once"
    cancelled = sh("squeue -h -r -t PENDING -o %i").split()[-1]
    sh(f"scancel {cancelled}")
    said, _ = driver.communicate(timeout=300)
    states = [result(f"eight/lr={float(rate)}").get("state", "none") for rate in RATES]
    assert sorted(states) == ["complete"] * 6 + ["failed", "none"], f"{states}\n{said[-3000:]}"
    assert driver.returncode == 1, said
    return said.splitlines()[-1]


def drained_node(runs: Runs) -> str:
    """Run the sweep again while a node drains: only the cancelled job and the failed one are left."""
    before = {path: path.stat().st_mtime_ns for path in Path("eight").glob("*/result.json")}
    sh("scontrol update NodeName=node2 State=DRAIN Reason=test")
    done = run(runs.sweep_line("eight"), capture_output=True, text=True, timeout=300)
    sh("scontrol update NodeName=node2 State=RESUME")
    states = [result(f"eight/lr={float(rate)}").get("state", "none") for rate in RATES]
    assert sorted(states) == ["complete"] * 7 + ["failed"], f"{states}\n{done.stderr[-3000:]}"
    again = [path for path, stamp in before.items() if path.stat().st_mtime_ns != stamp]
    assert [path.parent.name for path in again] == ["lr=1000000000.0"], again
    nodes = {job["nodes"] for job in slurm.jobs()[-2:]}
    assert nodes == {"node1"}, nodes
    return "both ran on node1; six were left alone"


def start_held(runs: Runs, folder: str) -> tuple[Popen, str]:
    """Start the guide's sweep with one job of one process, and return the driver and the job held at a checkpoint."""
    words = [*runs.small_sweep(folder), "seed=0"]
    with Path(f"{folder}.out").open("w") as log:
        driver = Popen(words, stdout=log, stderr=STDOUT, env=os.environ | gate(folder, HELD_AT))

    def reached() -> bool:
        assert driver.poll() is None, Path(f"{folder}.out").read_text()
        return Path(f"{folder}.{HELD_AT}.gate.reached").exists()

    wait_for(f"step {HELD_AT} of {folder}", reached)
    return driver, slurm.running()[-1]


def stopped_sweep_job(runs: Runs, folder: str, stop: Callable[[str], object]) -> str:
    """Stop the job of a sweep, and wait until the sweep is complete."""
    driver, job = start_held(runs, folder)
    stop(job)
    code = driver.wait(timeout=300)
    said = Path(f"{folder}.out").read_text() + Path(f"{folder}/only/job.log").read_text()
    assert code == 0, said
    assert result(f"{folder}/only").get("state") == "complete", said
    assert slurm.restarts(job) == 1, said
    assert "and saved" in said, said
    return assert_same_curve(f"{folder}/only", "one")


def cancelled_sweep_job(runs: Runs) -> str:
    driver, job = start_held(runs, "sweep-cancelled")
    sh(f"scancel {job}")
    code = driver.wait(timeout=300)
    said = Path("sweep-cancelled.out").read_text()
    assert (code, slurm.state(job)) == (1, "CANCELLED"), f"{slurm.state(job)}: {said}"
    assert "ended without a result" in said, said
    sh(" ".join([*runs.small_sweep("sweep-cancelled"), "seed=0"]))
    return assert_same_curve("sweep-cancelled/only", "one")


def killed_driver(runs: Runs) -> str:
    first, job = start_held(runs, "killed")
    first.kill()
    first.wait()
    with Path("killed.2.out").open("w") as log:
        second = Popen([*runs.small_sweep("killed"), "seed=0"], stdout=log, stderr=STDOUT)
    wait_for("the job of the second driver", lambda: len(slurm.running()) == 2)
    runs.open("killed")
    assert second.wait(timeout=300) == 0, Path("killed.2.out").read_text()
    assert slurm.state(job) == "COMPLETED", slurm.state(job)
    return assert_same_curve("killed/only", "one")


def two_node_job(runs: Runs) -> str:
    """Run the guide's sweep with one job, over two machines."""
    line = runs.sweep.replace("train.devices=8", "train.devices=2").replace("train.micro_batch_size=64 ", "")
    done = run(
        [*line.split(), *runs.words, "seed=0", "hydra.sweep.dir=wide"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = result("wide/only")
    assert (found.get("state"), found.get("processes")) == ("complete", 4), found
    return assert_same_curve("wide/only", "one")


def main() -> None:
    enter("slurm-wlm", "munge")
    claims = Claims(f"{sh('slurmctld -V')}, two nodes")
    with lab("node1", "node2") as machines:
        slurm.start(machines)
        runs = Runs(machines)
        for claim, show in {
            "one run over two nodes with two processes each": two_nodes,
            "a run at its time limit saves, is queued again, and continues": time_limit,
            "a run continues after scontrol requeue": requeue,
            "a run that a job of a higher partition preempts continues": preemption,
            "a run that loses a node continues": lost_node,
            "a cancelled run stays cancelled; sbatch again continues": cancelled,
            "a sweep of eight jobs, one cancelled, one that fails, more than MaxArraySize": eight_jobs,
            "a draining node gets no job; the sweep again does what is left": drained_node,
            "a sweep's job at its time limit continues": lambda runs: stopped_sweep_job(runs, "sweep-limit", shorten),
            "a sweep's job continues after a preemption": lambda runs: stopped_sweep_job(
                runs, "sweep-preempted", lambda job: preempt()
            ),
            "a sweep's running job is cancelled: not queued again; the same line continues": cancelled_sweep_job,
            "the driver of a sweep is killed: its job continues, and the same line waits for it": killed_driver,
            "a sweep with a job over two nodes": two_node_job,
        }.items():
            claims.check(claim, lambda show=show: show(runs))
    claims.end()


if __name__ == "__main__":
    main()
