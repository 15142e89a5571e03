"""`make test-torchrun`: one run on two machines under torch's own launcher, with DDP and FSDP2."""

import os
import re
import signal
import subprocess
from pathlib import Path

import torch
from lab import GUIDE, Claims, Machine, assert_same_curve, enter, gate, lab, result, sh, texts, wait_for
from safetensors.numpy import load_file


class Launchers:
    """The guide's line for torchrun, on one or two machines."""

    def __init__(self, machines: dict[str, Machine]) -> None:
        self.machines = machines
        self.words = [*texts(Path("text").absolute()), "train.keep_checkpoints=100"]
        line = re.search(r"```\w*\n(torchrun .*?)```", GUIDE.read_text(), re.DOTALL)[1]  # type: ignore[index]
        self.line = line.replace("\\\n", " ").replace("HOST", "node1")
        sh(f"gvc train {' '.join(self.words)} hydra.run.dir=one")

    def start(
        self, name: str, each: int, nodes: int = 2, held_at: int | None = None, words: str = ""
    ) -> list[subprocess.Popen]:
        """Start the line with `each` processes on each of the machines."""
        line = self.line
        for here, there in {
            "--nproc-per-node 8": f"--nproc-per-node {each} --max-restarts 3",
            "--nnodes 2": f"--nnodes {nodes}",
            "head=shortlist train.micro_batch_size=64": f"{' '.join(self.words)} hydra.run.dir={name} {words}",
        }.items():
            assert here in line, f"torchrun's line in {GUIDE.name} has no {here} any more"
            line = line.replace(here, there)
        extra = gate(name, held_at) if held_at else {}
        chosen = list(self.machines.values())[:nodes]
        return [one.start(*line.split(), log=Path(f"{name}.{one.name}.log"), **extra) for one in chosen]

    def end(self, name: str, started: list[subprocess.Popen]) -> None:
        """Wait for the launchers, and check that the run is complete."""
        codes = [process.wait(timeout=300) for process in started]
        said = "".join(path.read_text()[-3000:] for path in Path().glob(f"{name}.node*.log"))
        assert codes == [0] * len(started), f"{codes}:\n{said}"
        assert result(name)["state"] == "complete", result(name)

    def held(self, name: str, step: int, started: list[subprocess.Popen]) -> None:
        """Wait until the run is held at the checkpoint of a step."""

        def reached() -> bool:
            assert all(process.poll() is None for process in started), Path(f"{name}.node1.log").read_text()[-3000:]
            return Path(f"{name}.{step}.gate.reached").exists()

        wait_for(f"step {step} of {name}", reached)


def together(strategy: str, launchers: Launchers) -> str:
    launchers.end(strategy, launchers.start(strategy, 2, words=f"train.strategy={strategy}"))
    assert result(strategy)["processes"] == 4
    return assert_same_curve(strategy, "one")


def gradients(launchers: Launchers) -> str:
    """Compare the running means of the gradients, which the checkpoint of step 4 has."""
    one = load_file("one/checkpoints/step-00000004/state.safetensors")
    names = [name for name in one if name.endswith("/exp_avg")]
    assert names, list(one)
    worst = 0.0
    for strategy in ("ddp", "fsdp2"):
        other = load_file(f"{strategy}/checkpoints/step-00000004/state.safetensors")
        for name in names:
            difference, scale = abs(one[name] - other[name]).max(), abs(one[name]).max()
            assert difference <= 1e-4 * scale + 1e-9, f"{strategy} {name}: {difference} of {scale}"
            worst = max(worst, float(difference / scale) if scale else 0.0)
    return f"{len(names)} tensors differ by {worst:.0e} of their largest value at most"


def lost_process(launchers: Launchers) -> str:
    started = launchers.start("lost", 2, held_at=8)
    launchers.held("lost", 8, started)
    kill_rank(3)
    Path("lost.8.gate").touch()
    launchers.end("lost", started)
    said = "".join(path.read_text() for path in Path().glob("lost.node*.log"))
    assert "a process was lost; restart 1" in said, said[-2000:]
    return assert_same_curve("lost", "one")


def kill_rank(rank: int) -> None:
    """Kill the process with this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment and b"WORLD_SIZE=4" in environment:
            os.kill(int(folder.name), signal.SIGKILL)
            return
    raise AssertionError(f"no process has rank {rank}")


def lost_machine(launchers: Launchers) -> str:
    started = launchers.start("machine", 2, held_at=8)
    launchers.held("machine", 8, started)
    launchers.machines["node2"].kill()
    launchers.machines["node1"].sh("pkill -TERM -f [b]in/torchrun")
    started[0].wait(timeout=300)
    launchers.machines["node2"].boot()
    launchers.end("machine", launchers.start("machine", 2))
    return assert_same_curve("machine", "one")


def sizes(launchers: Launchers) -> str:
    """Train with 4, 2, 1 and again 4 processes. Each part ends with a SIGTERM to its launchers."""
    for step, (each, nodes) in {4: (2, 2), 8: (1, 2), 12: (1, 1)}.items():
        started = launchers.start("sizes", each, nodes, held_at=step)
        launchers.held("sizes", step, started)
        for machine in list(launchers.machines.values())[:nodes]:
            machine.sh("pkill -TERM -f [b]in/torchrun")
        for process in started:
            process.wait(timeout=300)
        assert result("sizes")["state"] == "interrupted", result("sizes")
    launchers.end("sizes", launchers.start("sizes", 2))
    return assert_same_curve("sizes", "one")


def main() -> None:
    enter()
    claims = Claims(f"torchrun of torch {torch.__version__}, two machines with two processes each, gloo")
    with lab("node1", "node2") as machines:
        launchers = Launchers(machines)
        for claim, show in {
            "DDP: the curve of one process": lambda: together("ddp", launchers),
            "FSDP2: the curve of one process": lambda: together("fsdp2", launchers),
            "DDP and FSDP2: the gradients of one process": lambda: gradients(launchers),
            "a killed process: all start again from the last checkpoint": lambda: lost_process(launchers),
            "a lost machine: the same command continues": lambda: lost_machine(launchers),
            "4, 2, 1 and again 4 processes: the curve of an unbroken run": lambda: sizes(launchers),
        }.items():
            claims.check(claim, show)
    claims.end()


if __name__ == "__main__":
    main()
