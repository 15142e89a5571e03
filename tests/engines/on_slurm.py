"""`make test-slurm`: runs and sweeps on a real SLURM controller with two nodes."""

import re
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
        line = self.sweep.replace("train.devices=8 train.nodes=2 train.micro_batch_size=64", "train.devices=1")
        rates = f"optim.lr={','.join(RATES)}"
        once = ["seed=0", "optim.warmup_steps=0", "optim.grad_clip=0", rates, f"hydra.sweep.dir={folder}"]
        return [*line.split(), *self.words, *once]

    def wait_until_held(self, name: str, job: str) -> None:
        def reached() -> bool:
            assert slurm.state(job) in ("PENDING", "RUNNING", "CONFIGURING"), Path(f"{name}.out").read_text()
            return Path(f"{name}.{HELD_AT}.gate.reached").exists()

        wait_for(f"step {HELD_AT} of {name}", reached, 90)

    def open(self, name: str) -> None:
        Path(f"{name}.{HELD_AT}.gate").touch()

    def finish(self, name: str, job: str, restarts: int | None) -> str:
        """Wait for the end of the job, and compare its curve with that of an unbroken run of one process."""
        wait_for(
            f"the end of job {job}",
            lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"),
        )
        said = Path(f"{name}.out").read_text()
        assert slurm.state(job) == "COMPLETED", f"job {job} is {slurm.state(job)}:\n{said}"
        assert result(name)["state"] == "complete", result(name)
        assert result(name)["processes"] == 4, result(name)["processes"]
        done = int(slurm.field(job, "Restarts"))
        assert done == restarts or (restarts is None and done > 0), f"{done} restarts:\n{said}"
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
    job = runs.submit("limit", "--time=1 --signal=TERM@30")
    runs.wait_until_held("limit", job)
    return runs.finish(
        "limit", job, None
    )  # SLURM may send the signal up to a minute early, and again after the restart


def requeue(runs: Runs) -> str:
    job = runs.submit("requeue")
    runs.wait_until_held("requeue", job)
    sh(f"scontrol requeue {job}")
    return runs.finish("requeue", job, 1)


def preemption(runs: Runs) -> str:
    job = runs.submit("preempted")
    runs.wait_until_held("preempted", job)
    sh("sbatch --wait -p urgent -N2 --exclusive -t 1 --output=urgent.out --wrap 'srun hostname'")
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
            "a sweep of eight jobs, one cancelled, one that fails, more than MaxArraySize": eight_jobs,
            "a draining node gets no job; the sweep again does what is left": drained_node,
            "a sweep with a job over two nodes": two_node_job,
        }.items():
            claims.check(claim, lambda show=show: show(runs))
    claims.end()


if __name__ == "__main__":
    main()
