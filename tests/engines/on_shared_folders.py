"""`make test-shared`: two machines in one folder of a file system that tells neither of the other's locks (FUSE)."""

import signal
import subprocess
from pathlib import Path

from lab import Claims, Machine, assert_same_curve, curve, enter, gate, lab, result, sh, texts, wait_for

BUSY = 3


class Shared:
    """The folder `shared`, which each machine has mounted for itself."""

    def __init__(self, machines: dict[str, Machine]) -> None:
        self.first, self.second = machines.values()
        for name in ("real", "shared"):
            Path(name).mkdir()
        for machine in machines.values():
            self.mount(machine)
        self.words = texts(Path("text").absolute())
        sh(f"gvc train {' '.join(self.words)} hydra.run.dir=one")

    def mount(self, machine: Machine) -> None:
        machine.sh("bindfs real shared")

    def start(self, machine: Machine, *words: str, **environment: str) -> subprocess.Popen:
        """Start gvc on a machine; its output goes to a file named after the machine."""
        return machine.start("gvc", *words[:1], *self.words, *words[1:], log=Path(f"{machine.name}.log"), **environment)


def locks_are_not_shared(shared: Shared) -> str:
    taken = Path("probe.taken")
    with shared.first.start(
        "flock", "-n", "shared/probe", "sh", "-c", f"touch {taken} && cat", log=Path("probe.log")
    ) as holder:
        wait_for("the first lock", taken.exists)
        shared.first.sh("! flock -n shared/probe true")
        shared.second.sh("flock -n shared/probe true")
    assert holder.returncode == 0, Path("probe.log").read_text()
    return "a lock keeps a process of the same machine away, and none of the other machine"


def run_folder(shared: Shared) -> str:
    holder = shared.start(shared.first, "train", "hydra.run.dir=shared/run", **gate("run", 8))
    wait_for("step 8", Path("run.8.gate.reached").exists)
    refused = shared.start(shared.second, "train", "hydra.run.dir=shared/run").wait(timeout=120)
    said = Path(f"{shared.second.name}.log").read_text()
    Path("run.8.gate").touch()
    assert refused == BUSY, f"{refused}: {said}"
    assert "is in use by another gvc" in said, said
    assert holder.wait(timeout=120) == 0
    return assert_same_curve("real/run", "one")


def lost_machine(shared: Shared) -> str:
    shared.start(shared.first, "train", "hydra.run.dir=shared/lost", **gate("lost", 8))
    wait_for("step 8", Path("lost.8.gate.reached").exists)
    shared.first.kill()
    shared.first.boot()
    shared.mount(shared.first)
    code = shared.start(shared.second, "train", "hydra.run.dir=shared/lost").wait(timeout=150)
    assert code == 0, Path(f"{shared.second.name}.log").read_text()[-2000:]
    return assert_same_curve("real/lost", "one")


def stopped_process(shared: Shared) -> str:
    """Stop a run as Ctrl-Z does, for longer than a lease lasts, and wake it when the other machine trains."""
    sleeper = shared.start(shared.first, "train", "hydra.run.dir=shared/asleep", **gate("asleep", 8))
    wait_for("step 8", Path("asleep.8.gate.reached").exists)
    shared.first.sh("pkill -STOP -f hydra.run.dir=shared/asleep")
    other = shared.start(shared.second, "train", "hydra.run.dir=shared/asleep", **gate("asleep", 12))
    wait_for("step 12", Path("asleep.12.gate.reached").exists)
    sleeper.send_signal(signal.SIGCONT)  # nsenter passes it on
    code = sleeper.wait(timeout=60)
    said = Path(f"{shared.first.name}.log").read_text()
    assert code == BUSY, said
    assert "was taken by another machine" in said, said
    Path("asleep.12.gate").touch()
    assert other.wait(timeout=120) == 0
    return assert_same_curve("real/asleep", "one")


def cache(shared: Shared) -> str:
    words = [[f"hydra.run.dir=shared/cache-{i}", "data.cache_dir=shared/cache"] for i in range(2)]
    both = [shared.start(one, "train", *two) for one, two in zip((shared.first, shared.second), words, strict=True)]
    assert [process.wait(timeout=150) for process in both] == [0, 0]
    entries = [path for path in Path("real/cache").rglob("*") if path.suffix == ".tmp"]
    assert not entries, entries
    for i in range(2):
        said = assert_same_curve(f"real/cache-{i}", "one")
    return said


def sweep(shared: Shared) -> str:
    words = ["sweep", "seeds", "seed=0,1,2", "hydra.sweep.dir=shared/sweep"]
    lines = [["gvc", *words[:2], *shared.words, *words[2:]]] * 2
    both = [
        machine.start(*line, log=Path(f"{machine.name}.sweep.log"))
        for machine, line in zip((shared.first, shared.second), lines, strict=True)
    ]
    codes = [process.wait(timeout=400) for process in both]
    said = "".join(path.read_text()[-2000:] for path in Path().glob("*.sweep.log"))
    assert codes == [0, 0], f"{codes}\n{said}"
    for seed in range(3):
        folder = f"real/sweep/seed={seed}"
        assert result(folder).get("state") == "complete", said
        assert len(curve(folder)) == 10, curve(folder)
    return "3 jobs of two drivers, each trained once"


def main() -> None:
    enter("bindfs", "fuse3")
    claims = Claims(f"{sh('bindfs --version')}: a folder on two machines that do not share locks")
    with lab("node1", "node2") as machines:
        shared = Shared(machines)
        for claim, show in {
            "locks are off": locks_are_not_shared,
            "a run folder in use is refused on the other machine": run_folder,
            "a run of a lost machine continues on the other one": lost_machine,
            "a run that slept while the other machine took it over ends": stopped_process,
            "two machines prepare one text: one cache entry, equal curves": cache,
            "two drivers of one sweep: every job once": sweep,
        }.items():
            claims.check(claim, lambda show=show: show(shared))
    claims.end()


if __name__ == "__main__":
    main()
