"""Machines made of Linux namespaces, on which the engines' own software runs, and one line for each claim.

A machine has its own network address, host name, mounts, processes and $TMPDIR. It shares the files of this machine,
as the machines of a cluster share a file system. `enter` puts the whole script into an outer namespace: whatever
happens to the script, the kernel ends all its processes and removes its networks and mounts. Linux, and root.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BIN = Path(sys.executable).parent
NETWORK = "10.77.0"
INSIDE = "GVC_LAB"
REPOSITORY = Path(__file__).parents[2]
GUIDE = REPOSITORY / "docs" / "guide" / "clusters.md"
FOLDERS = {"HOME": "home", "TMPDIR": "tmp", "GVC_CACHE_DIR": "cache"}
"""Folders of the lab in place of the user's own, by their environment variables."""
SUMS = 1e-5
"""Nats. Several processes add the same numbers in another order."""


def skip(why: str) -> None:
    """Say why nothing was run, and end with 0."""
    print(f"skipped: {why}")
    raise SystemExit(0)


def enter(*packages: str) -> None:
    """Install Debian packages that are missing, and run this script again in namespaces of its own."""
    if os.environ.get(INSIDE):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # the first process of a namespace ignores it
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    if sys.platform != "linux" or os.getuid():
        skip("the machines are made of Linux namespaces, and that needs root")
    missing = [word for word in ("iproute2", "util-linux", *packages) if not is_installed(word)]
    if missing:
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        if shutil.which("apt-get") is None:
            skip(f"no apt-get here to install {' '.join(missing)}")
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)
        done = subprocess.run(install, check=False, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **quiet)
        if done.returncode:
            why = done.stderr.strip().splitlines() or ["apt-get says nothing"]
            skip(f"cannot install {' '.join(missing)}: {why[-1]}")
    spaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    probe = subprocess.run([*spaces, "true"], check=False, capture_output=True, text=True)
    if probe.returncode:
        skip(f"this machine allows no namespaces: {probe.stderr.strip()}")
    os.execvpe(spaces[0], [*spaces, sys.executable, *sys.argv], os.environ | {INSIDE: "1"})


def is_installed(package: str) -> bool:
    """Return whether a Debian package is installed."""
    asked = subprocess.run(["dpkg-query", "-W", "-f=${Status}", package], check=False, capture_output=True, text=True)
    return asked.stdout.endswith("ok installed")


def wait_for(what: str, found: Callable[[], object], seconds: float = 180) -> object:
    """Return the first true answer of `found`, and raise an AssertionError if there is none in time."""
    until = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < until, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.2)
    return answer


class Machine:
    """A machine with a name and an address of its own."""

    def __init__(self, name: str, number: int, hosts: Path) -> None:
        self.name, self.address, self._number, self._hosts = name, f"{NETWORK}.{number}", number, hosts
        self.boot()

    def boot(self) -> None:
        """Start the machine, or start it again after `kill`."""
        spaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._first = subprocess.Popen([*spaces, "sleep", "infinity"], stderr=subprocess.DEVNULL)
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        self._pid = str(wait_for("the first process", lambda: children.read_text().split())[0])  # type: ignore[index]
        wait_for("its mounts", lambda: Path(f"/proc/{self._pid}/comm").read_text() == "sleep\n")
        link, inner = f"gvc{self._number}", f"gvc{self._number}i"
        sh(f"ip link add {link} type veth peer name {inner} && ip link set {link} master gvc0 up")
        sh(f"ip link set {inner} netns {self._pid}")
        own = Path(f"tmp-{self.name}").absolute()
        own.mkdir(exist_ok=True)
        self.sh(f"mount --bind {own} $TMPDIR && hostname {self.name} && mount --bind {self._hosts} /etc/hosts")
        self.sh(f"ip link set lo up && ip addr add {self.address}/24 dev {inner} && ip link set {inner} up")

    def words(self, *words: str) -> list[str]:
        """Return the command that runs `words` on this machine."""
        return ["nsenter", "-t", self._pid, "-n", "-u", "-m", "-p", "-W", str(Path.cwd()), *words]

    def sh(self, line: str) -> str:
        """Run a line of shell on this machine, and return what it prints."""
        return answer(self.words("bash", "-c", line), line)

    def start(self, *words: str, log: Path, **environment: str) -> subprocess.Popen:
        """Start a command on this machine. Its input is a pipe, its output goes to the end of `log`."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self.words(*words), stdin=subprocess.PIPE, stdout=file, stderr=file, env=os.environ | environment
            )

    def kill(self) -> None:
        """End the machine and all its processes at once, as a loss of power does."""
        if self._first.poll() is None:
            os.kill(int(self._pid), 9)
            self._first.wait()


def sh(line: str, check: bool = True) -> str:
    """Run a line of shell, and return what it prints."""
    return answer(["bash", "-c", line], line, check)


def answer(words: list[str], line: str, check: bool = True) -> str:
    """Run a command, and return what it prints. If it fails, raise an AssertionError with its whole output."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


@contextmanager
def lab(*names: str) -> Iterator[dict[str, Machine]]:
    """Give machines of these names, in a folder that they share. This process is the machine `head`."""
    root = Path(tempfile.mkdtemp(prefix="gvc-", dir="/var/tmp"))
    before = Path.cwd()
    hosts = root / "hosts"
    addresses = {"head": f"{NETWORK}.1"} | {name: f"{NETWORK}.{10 + i}" for i, name in enumerate(names)}
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in addresses.items()))
    sh(f"mount --bind {hosts} /etc/hosts && hostname head")
    sh(f"ip link add gvc0 type bridge && ip addr add {NETWORK}.1/24 dev gvc0 && ip link set gvc0 up")
    os.chdir(root)
    own = {variable: str(root / name) for variable, name in FOLDERS.items()}
    for folder in own.values():
        Path(folder).mkdir()
    os.environ |= own | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    machines = {}
    try:
        for i, name in enumerate(names):
            machines[name] = Machine(name, 10 + i, hosts)
        yield machines
    finally:
        os.chdir(before)
        for machine in machines.values():
            machine.kill()
        assert os.getpid() == 1, "this process is not the first one of its namespace"
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # the daemons of this machine, which would write into the folder
        if os.environ.get("GVC_LAB_KEEP"):
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)


class Claims:
    """Claims of the guide. Each one is a line of the output, with its time."""

    def __init__(self, engine: str) -> None:
        self.failed, self._started, self._chosen = 0, time.monotonic(), sys.argv[1:]
        print(engine, flush=True)

    def check(self, claim: str, show: Callable[[], str | None]) -> None:
        """Run `show`, and print the claim with what it returns. Words of the command line choose claims."""
        if self._chosen and not any(word in claim for word in self._chosen):
            return
        start = time.monotonic()
        try:
            said = show()
            verdict = "ok    "
        except (AssertionError, subprocess.SubprocessError, OSError) as error:
            self.failed += 1
            said, verdict = str(error), "FAILED"
        print(f"{verdict} {time.monotonic() - start:4.0f} s  {claim}{f': {said}' if said else ''}", flush=True)

    def end(self) -> None:
        """Say how long all took, and exit with 1 if a claim failed."""
        took = time.monotonic() - self._started
        print(f"{self.failed} claims failed, in {took:.0f} s" if self.failed else f"all claims hold, in {took:.0f} s")
        raise SystemExit(bool(self.failed))


def texts(folder: Path) -> list[str]:
    """Write two small texts, and return the overrides of a run that takes a second of training."""
    folder.mkdir()
    things, toys, deeds = ("cat", "dog", "frog", "bird", "hen", "fox"), ("ball", "kite", "drum", "hat"), ("run", "sing")
    stories = [
        f"Once a {a} had a {b} and liked to {c}. The {b} was lost.\n" for a in things for b in toys for c in deeds
    ]
    for name, part in (("train", stories[:40]), ("valid", stories[40:])):
        (folder / f"{name}.txt").write_text("\n<|endoftext|>\n".join(part * 4) + "\n<|endoftext|>\n")
    words = ["model=debug", "head=dense", "tokenizer=bytes", "data=text", f"data.train={folder}/train.txt"]
    words += [f"data.valid={folder}/valid.txt", "train.micro_batch_size=4", "train.max_steps=20"]
    words += ["train.log_every_steps=2", "train.checkpoint_every_steps=4", "train.device=cpu", "train.threads=1"]
    return [*words, "tracking=none"]


def gate(name: str, step: int) -> dict[str, str]:
    """Return the environment that holds a run at its first checkpoint from `step` on, until NAME.STEP.gate exists."""
    held = Path(f"{name}.{step}.gate").absolute()
    return {"PYTHONPATH": str(REPOSITORY / "tests" / "helpers" / "gated"), "GVC_TEST_GATE": f"{step}:{held}"}


def result(run_dir: str | Path) -> dict:
    """Return result.json of a run, or an empty dict."""
    path = Path(run_dir) / "result.json"
    return json.loads(path.read_text()) if path.exists() else {}


def curve(run_dir: str | Path) -> dict[int, float]:
    """Return the training loss by step. A step that is recorded twice fails."""
    rows = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    steps = [row["trainer/step"] for row in rows]
    assert len(steps) == len(set(steps)), f"{run_dir} has steps twice: {steps}"
    return {row["trainer/step"]: row["train/loss"] for row in rows}


def assert_same_curve(run_dir: str | Path, reference: str | Path) -> str:
    """Compare two records, and return the largest difference in words."""
    one, other = curve(run_dir), curve(reference)
    assert one.keys() == other.keys(), f"{run_dir} has steps {list(one)}, {reference} {list(other)}"
    worst = max(abs(one[step] - other[step]) for step in one)
    assert worst <= SUMS, f"the curves differ by {worst:.1e} nats"
    return f"{len(one)} losses differ by {worst:.0e} at most"
