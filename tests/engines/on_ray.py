"""`make test-ray`: a sweep on a real Ray cluster of two machines, of which one is lost in the middle."""

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import Popen

from lab import (
    GUIDE,
    NETWORK,
    Claims,
    Machine,
    assert_same_curve,
    enter,
    gate,
    lab,
    result,
    sh,
    skip,
    texts,
    wait_for,
)

JOBS = ("seed=0", "seed=1", "seed=2", "seed=3")
LIMITS = "--disable-usage-stats --num-cpus=2 --num-gpus=2 --object-store-memory=80000000"


class Cluster:
    """A head on this machine and a raylet on node2, started with the guide's lines, and the guide's sweep."""

    def __init__(self, machines: dict[str, Machine]) -> None:
        self.node = machines["node2"]
        self.lines = re.search(r"```\w*\n(pip install -e '\.\[ray\]'\n.*?)```", GUIDE.read_text(), re.DOTALL)[1]  # type: ignore[index]
        self.words = " ".join(texts(Path("text")))
        sh(f"gvc sweep seeds {self.words} seed=0,1,2,3 hydra.sweep.dir=alone")  # one process each, without Ray
        sh(self.line("ray get-auth-token"))
        os.environ["RAY_AUTH_MODE"] = self.line("export RAY_AUTH_MODE").partition("=")[2]
        sh(f"{self.line('ray start --head')} --node-ip-address={NETWORK}.1 --include-dashboard=false {LIMITS}")

    def line(self, start: str) -> str:
        """Return the guide's line that starts so, without its comment."""
        found = re.search(rf"^{start}.*$", self.lines, re.MULTILINE)
        assert found, f"{GUIDE.name} has no line {start} any more"
        return found[0].partition("#")[0].strip()

    def join(self, **environment: str) -> tuple[int, str]:
        """Start the raylet of node2 in another folder than that of the sweep. Return its exit code and its words."""
        line = self.line("ray start --address").replace("HOST", f"{NETWORK}.1")
        log = Path("raylet.log")
        started = self.node.start(
            "bash",
            "-c",
            f"cd / && {line} --node-ip-address={self.node.address} {LIMITS}",
            log=log,
            **environment,
        )
        return started.wait(timeout=120), log.read_text()

    def sweep(self, folder: str) -> tuple[Popen, Path]:
        """Start the guide's sweep."""
        line, log = (
            f"{self.line('gvc sweep')} {self.words} seed=0,1,2,3 hydra.sweep.dir={folder}",
            Path(f"{folder}.log"),
        )
        with log.open("a") as file:
            return Popen(line.split(), stdout=file, stderr=file), log


def refused(cluster: Cluster) -> str:
    code, said = cluster.join(RAY_AUTH_MODE="disabled")
    assert code != 0, said
    return next(line.strip() for line in said.splitlines() if "AuthToken" in line or "authentication" in line)[-100:]


def one_node_lost(cluster: Cluster) -> str:
    code, said = cluster.join(**gate("ray", 4))
    assert code == 0, said
    driver, log = cluster.sweep("seeds")
    reached = Path("ray.4.gate.reached")
    wait_for("a job on node2", lambda: driver.poll() is not None or reached.exists())
    assert reached.exists(), log.read_text()
    environments = "for p in $(pgrep -f [g]rouped_lm.jobs.worker); do tr '\\0' '\\n' < /proc/$p/environ; done"
    devices = cluster.node.sh(f"{environments} | grep ^CUDA_VISIBLE_DEVICES= | sort -u")
    assert devices == "CUDA_VISIBLE_DEVICES=0,1", devices
    cluster.node.kill()
    code = driver.wait(timeout=300)
    assert code == 0, log.read_text()[-3000:]
    return same_jobs("seeds", log)


def same_jobs(folder: str, log: Path) -> str:
    """Check that all jobs are complete, with the losses that they have without Ray."""
    states = {name: result(f"{folder}/{name}").get("state") for name in JOBS}
    assert set(states.values()) == {"complete"}, f"{states}\n{log.read_text()[-2000:]}"
    return f"4 jobs complete; {[assert_same_curve(f'{folder}/{name}', f'alone/{name}') for name in JOBS][-1]}"


def again(cluster: Cluster) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("seeds").glob("*/result.json")}
    assert len(before) == len(JOBS)
    driver, log = cluster.sweep("seeds")
    assert driver.wait(timeout=120) == 0, log.read_text()[-2000:]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def killed_driver(cluster: Cluster) -> str:
    cluster.node.boot()
    code, said = cluster.join()
    assert code == 0, said
    driver, log = cluster.sweep("killed")
    wait_for(
        "the first checkpoint", lambda: driver.poll() is not None or any(Path("killed").glob("*/checkpoints/step-*"))
    )
    driver.kill()
    driver.wait()
    driver, log = cluster.sweep("killed")
    assert driver.wait(timeout=300) == 0, log.read_text()[-2000:]
    return same_jobs("killed", log)


def main() -> None:
    try:
        engine = f"Ray {version('ray')}, hydra-ray-launcher {version('hydra-ray-launcher')}, two machines"
    except PackageNotFoundError:
        skip("Ray is not installed: pip install -e '.[ray]'")
    enter()
    claims = Claims(engine)
    with lab("node2") as machines:
        cluster = Cluster(machines)
        for claim, show in {
            "a machine without the token is refused": refused,
            "a sweep that loses a machine: each job has the GPUs of one machine, and ends once": one_node_lost,
            "the same line again trains nothing": again,
            "a machine joins, the driver is killed, and the same line continues": killed_driver,
        }.items():
            claims.check(claim, lambda show=show: show(cluster))
    claims.end()


if __name__ == "__main__":
    main()
