"""The jobs of a sweep. Each runs in a process and a folder of its own, and is finished exactly once.

The run folder records the state of a job. The hash of its config says whether it holds this job. The lock in it says
whether a process trains it, the lock beside it whether a driver has it, and `result.json` how it ended. A sweep that is
run again, by one driver or by several at once, does only what is left.
"""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from grouped_lm.config import Config, config_to_dict
from grouped_lm.errors import BusyError, GvcError
from grouped_lm.jobs.device_slots import Share
from grouped_lm.runs.folder import COMPLETE, FAILED, INTERRUPTED, RunFolder
from grouped_lm.runs.identity import config_hash
from grouped_lm.runs.load import load_config, read_job
from grouped_lm.runs.table import is_held
from grouped_lm.system.files import write_json

LOG = "job.log"
RUNNING = "running"
BUSY_EXIT = 64
"""A worker's exit code if another process trains in its folder."""


def job_state(config: Config, run_dir: Path) -> str:
    """Return `complete`, `failed`, `interrupted`, `running`, `unfinished`, `changed` or `new`."""
    folder = RunFolder(run_dir)
    result = folder.read_result() or {}
    if not any(path.exists() for path in (folder.config, folder.job, folder.checkpoints)):
        return result.get("state", "new")
    started = folder.config.exists()  # a job may have failed before it wrote its config
    try:
        saved = load_config(run_dir) if started else read_job(folder.job)
        same = config_hash(saved) == config_hash(config)
    except GvcError:
        same = False
    if not same:
        return "changed"
    state = result.get("state", "unfinished" if started else "new")
    return RUNNING if state != COMPLETE and is_held(folder.path / ".lock") else state


def set_aside(run_dir: Path) -> Path:
    """Move a run folder into `.replaced/` beside it, and return its new path.

    Raises:
        BusyError: a process trains in it; it is left as it is.
    """
    aside = run_dir.parent / ".replaced" / f"{run_dir.name}-{time.time_ns()}"
    with RunFolder(run_dir).lock():
        aside.parent.mkdir(parents=True, exist_ok=True)
        return run_dir.rename(aside)


def run_job(config: Config, run_dir: Path, wait: bool = False, environment: dict[str, str] | None = None) -> str:
    """Train `config` in `run_dir` in a child process, unless it is complete, and return the state of the job.

    The child saves and stops when this process dies, also when it is killed.

    Args:
        config: the job.
        run_dir: its folder. A folder with another config is moved aside. If another gvc works in that one, it is left
            alone and the job counts as failed. A line on stderr says either.
        wait: wait for another process that has this job; otherwise return `running` at once.
        environment: variables of the child in addition to those of this process.

    Raises:
        KeyboardInterrupt, SystemExit: this process was asked to stop; the child has saved.
    """
    state = job_state(config, run_dir)
    if state == COMPLETE:
        return state
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    beside = run_dir.parent / f".{run_dir.name}.lock"  # inside the folder it would be moved aside with it
    try:
        with FileLock(beside, timeout=-1 if wait else 0):
            return _run_locked(config, run_dir, wait, environment or {})
    except (BusyError, Timeout):
        if job_state(config, run_dir) != "changed":
            return RUNNING
    print(
        f"gvc: {run_dir} is in use by another gvc with another config: it is left alone, and this job is not run; "
        "give another hydra.sweep.dir",
        file=sys.stderr,
    )
    return FAILED


def _run_locked(config: Config, run_dir: Path, wait: bool, environment: dict[str, str]) -> str:
    """Run a job as the only driver that has it, and return its state.

    Raises:
        BusyError: another process uses the folder with another config.
    """
    state = job_state(config, run_dir)
    if state == COMPLETE:
        return state
    if state == "changed":
        if wait:
            raise BusyError(f"{run_dir} was given another config in the meantime")
        aside = set_aside(run_dir)
        print(f"gvc: {run_dir.name} was made with another config: kept as {aside}, run anew", file=sys.stderr)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(RunFolder(run_dir).job, config_to_dict(config))
    while (code := _run_child(run_dir, environment)) == BUSY_EXIT:
        if not wait:
            return RUNNING
        time.sleep(1.0)
    return _record_end(run_dir, code)


def _run_child(run_dir: Path, environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "grouped_lm.jobs.worker", str(run_dir), str(os.getpid())]
    with (run_dir / LOG).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | environment,
        )
        try:
            return child.wait()
        except BaseException:  # Ctrl-C or SIGTERM here: the child saves first
            child.send_signal(signal.SIGTERM)
            child.wait()
            raise


def _record_end(run_dir: Path, code: int) -> str:
    """Return the state that the child left; write the reason if the child could not."""
    folder = RunFolder(run_dir)
    state = (folder.read_result() or {}).get("state")
    if code == 0 and state == COMPLETE:
        return COMPLETE
    if state == INTERRUPTED and code > 0:
        return INTERRUPTED
    if state != FAILED or code < 0:
        why = _last_line(run_dir / LOG)
        if code < 0:
            why = f"killed by signal {-code} ({signal.Signals(-code).name})"
        if code == -signal.SIGKILL:
            why += ", from outside or by the system for want of memory"
        write_json(folder.result, {"state": FAILED, "reason": why, "exit_code": code})
    return FAILED


def _last_line(path: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def failures(jobs: list[tuple[Config, Path]]) -> list[str]:
    """Return "folder: reason" of every job that failed."""
    failed = (path for config, path in jobs if job_state(config, path) == FAILED)
    return [f"{path.name}: {failure_reason(path)}" for path in failed]


def failure_reason(run_dir: Path) -> str:
    """Return the reason of a failed job."""
    return (RunFolder(run_dir).read_result() or {}).get("reason", "unknown")


def jobs_below(folder: Path) -> list[tuple[Config, Path]]:
    """Return the jobs in a sweep's folder. For a search these are all jobs that exist so far."""
    jobs = []
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(GvcError):  # not a job's folder
            jobs.append((read_job(RunFolder(path).job), path))
    return jobs


@contextlib.contextmanager
def driver_ledger(sweep_dir: Path) -> Iterator[Path]:
    """Make a folder that one driver shares with its workers, which may run on other machines; remove it afterwards.

    The ledgers of killed drivers are removed too.
    """
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with FileLock(sweep_dir / ".drivers.lock"):  # a ledger without its lock looks stale to another driver
            for stale in sweep_dir.glob(".driver-*"):
                with contextlib.suppress(Timeout, OSError), FileLock(stale / ".lock", timeout=0):
                    shutil.rmtree(stale)
            made = tempfile.TemporaryDirectory(prefix=".driver-", dir=sweep_dir, ignore_cleanup_errors=True)
            ledger = Path(stack.enter_context(made))
            stack.enter_context(FileLock(ledger / ".lock"))
        yield ledger


@dataclass(frozen=True)
class SweepLimits:
    """Which jobs one call of a driver may start. `ledger` is the folder that it shares with its workers."""

    ledger: Path
    max_jobs: int | None = None
    fail_fast: bool = False
    only_failed: bool = False

    def allow(self, state: str) -> bool:
        """Return whether a job in `state` may start now; if so, count it."""
        if self.only_failed and state != FAILED:
            return False
        if self.fail_fast and (self.ledger / FAILED).exists():
            return False
        for number in range(self.max_jobs if self.max_jobs is not None else 0):
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # no ledger: the driver was killed
                (self.ledger / f"start-{number}").touch(exist_ok=False)
                return True
        return self.max_jobs is None

    def note(self, state: str, run_dir: Path) -> None:
        """Record the state of a job for the rest of this call."""
        with contextlib.suppress(FileNotFoundError):  # no ledger: a queued job can outlive its driver
            (self.ledger / state).touch()
            if state == RUNNING:
                (self.ledger / f"{RUNNING}-{run_dir.name}").touch()

    def left_to_others(self, run_dir: Path) -> bool:
        """Return whether another driver had this job when this driver came to it."""
        return (self.ledger / f"{RUNNING}-{run_dir.name}").exists()

    def any_left_to_others(self) -> bool:
        """Return whether another driver had any job."""
        return (self.ledger / RUNNING).exists()


def run_limited(config: Config, run_dir: Path, limits: SweepLimits, wait: bool, share: Share) -> float:
    """Run one job in its share of the machine, if the limits allow it; return its validation loss, else infinity.

    Args:
        config: the job.
        run_dir: its folder.
        limits: of this call of the driver.
        wait: only wait for jobs of other drivers, and take them over if these die.
        share: what the job may use of the machine.
    """
    state = job_state(config, run_dir)
    if state != COMPLETE and (not wait or limits.left_to_others(run_dir)):
        with share.environment(config.train.device, processes=config.train.devices) as environment:
            state = job_state(config, run_dir)  # waiting for a slot can take hours
            if state != COMPLETE and (wait or limits.allow(state)):
                state = run_job(config, run_dir, wait=wait, environment=environment)
                limits.note(state, run_dir)
    if state != COMPLETE:
        return math.inf
    return (RunFolder(run_dir).read_result() or {})["val/loss"]
