"""`make test-ray`: a sweep on a real Ray cluster of two machines, of which one is lost in the middle."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

from lab import (
    GUIDE,
    NETWORK,
    Claims,
    Machine,
    curve,
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
    """A head on this machine and a raylet on node2, and the guide's sweep."""

    def __init__(self, machines: dict[str, Machine]) -> None:
        self.machines = machines
        line = re.search(r"^gvc sweep seeds .*hydra/launcher=ray.*$", GUIDE.read_text(), re.MULTILINE)[0]  # type: ignore[index]
        words = " ".join([*texts(Path("text")), "seed=0,1,2,3"])
        self.line = f"{line} {words}"
        sh(f"ray start --head --node-ip-address={NETWORK}.1 --include-dashboard=false {LIMITS}")
        self.join(gate("ray", 4))

    def join(self, environment: dict[str, str]) -> None:
        """Start the raylet of node2, in another folder than that of the sweep."""
        node = self.machines["node2"]
        words = f"cd / && ray start --address={NETWORK}.1:6379 --node-ip-address={node.address} {LIMITS}"
        node.start("bash", "-c", words, log=Path("raylet.log"), **environment).wait(timeout=120)
        count = "import ray; ray.init(address='auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        wait_for("two Ray nodes", lambda: sh(f'python -c "{count}"', check=False) == "2")


def sweep(cluster: Cluster) -> str:
    """Run the guide's line while node2 is lost."""
    driver = Popen(cluster.line.split(), stdout=PIPE, stderr=STDOUT, text=True)
    wait_for("a job on node2", Path("ray.4.gate.reached").exists, 150)
    cluster.machines["node2"].kill()
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said[-3000:]
    states = {name: result(f"runs/seeds/{name}").get("state") for name in JOBS}
    assert set(states.values()) == {"complete"}, f"{states}\n{said[-2000:]}"
    assert all(len(curve(f"runs/seeds/{name}")) == 10 for name in JOBS)
    return f"{len(states)} jobs, each step once"


def again(cluster: Cluster) -> str:
    """Run the guide's line again, which finds all jobs complete."""
    before = {path: path.stat().st_mtime_ns for path in Path("runs/seeds").glob("*/result.json")}
    assert len(before) == len(JOBS)
    sh(cluster.line)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    return "nothing is trained twice"


def main() -> None:
    try:
        claims = Claims(f"Ray {version('ray')}, hydra-ray-launcher {version('hydra-ray-launcher')}, two machines")
    except PackageNotFoundError:
        skip("Ray is not installed: pip install -e '.[ray]'")
    enter()
    with lab("node2") as machines:
        cluster = Cluster(machines)
        claims.check("a sweep that loses a machine: every job ends once", lambda: sweep(cluster))
        claims.check("the same line again", lambda: again(cluster))
    claims.end()


if __name__ == "__main__":
    main()
