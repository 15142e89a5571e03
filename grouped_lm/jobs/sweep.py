"""The jobs of a sweep, and their display. Each job runs in a process and a folder of its own, exactly once.

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
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout
from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from grouped_lm.config import Config, config_to_dict
from grouped_lm.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, BusyError, DivergedError, GvcError
from grouped_lm.jobs.device_slots import Share
from grouped_lm.runs.folder import COMPLETE, FAILED, INTERRUPTED, RunFolder
from grouped_lm.runs.identity import config_hash
from grouped_lm.runs.load import load_config, read_job
from grouped_lm.runs.table import is_held, last_metrics
from grouped_lm.system.console import one_line
from grouped_lm.system.files import is_leased_elsewhere, shared_lock, write_json
from grouped_lm.system.phases import format_seconds, say
from grouped_lm.system.tables import Table, columns, shorten_middle

LOG = "job.log"
RUNNING = "running"
BUSY_EXIT = 64
"""A worker's exit code if another process trains in its folder."""
DIVERGED_LOSS = 1e300
"""The loss that a search gets for a job that diverged. It is finite, since infinite ones are tried again."""
POLL_SECONDS = 1.0
FOLLOW_SECONDS = 120.0
"""How long a job's other machines wait until its first one has started to train."""
NAME_SHARE = 3
"""A job's name takes at most one third of the terminal."""
OTHER_COLUMNS = 35
"""Characters of state, step and lines of the table."""


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
    """Move a run folder into `.replaced/` beside it, and return its new path. One in use raises a BusyError."""
    aside = run_dir.parent / ".replaced" / f"{run_dir.name}-{time.time_ns()}"
    with RunFolder(run_dir).lock():
        aside.parent.mkdir(parents=True, exist_ok=True)
        return run_dir.rename(aside)


def run_job(config: Config, run_dir: Path, wait: bool = False, environment: dict[str, str] | None = None) -> str:
    """Train `config` in `run_dir` in a child process, unless it is complete, and return the state of the job.

    The child saves and stops when this process is asked to stop, and when it dies.

    Args:
        config: the job.
        run_dir: its folder. A folder with another config is moved aside. If another gvc works in that one, it is left
            alone and the job counts as failed. A line on stderr says either.
        wait: wait for another process that has this job. Otherwise `running` is returned at once.
        environment: variables of the child in addition to those of this process.
    """
    if job_state(config, run_dir) == COMPLETE:
        return COMPLETE
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        with shared_lock(driver_lock(run_dir), -1 if wait else 0):
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
    """Run a job as the only driver that has it, and return its state. `BusyError`: the folder has another config."""
    state = job_state(config, run_dir)
    if state == COMPLETE:
        return state
    if state == "changed":
        if wait:
            raise BusyError(f"{run_dir} was given another config in the meantime")
        aside = set_aside(run_dir)
        print(f"gvc: {run_dir.name} was made with another config: kept as {aside}, trained again", file=sys.stderr)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(RunFolder(run_dir).job, config_to_dict(config))
    before = _written_at(RunFolder(run_dir).result)
    while (code := _run_child(run_dir, environment)) == BUSY_EXIT:
        if not wait:
            return RUNNING
        time.sleep(1.0)
    return _record_end(run_dir, code, before)


def _written_at(path: Path) -> int:
    """Return the time stamp of a file, 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def is_follower(config: Config) -> bool:
    """Return whether this is a job of several machines, on another machine than the first."""
    return config.train.nodes > 1 and os.environ.get("SLURM_PROCID", "0") != "0"


def follow_job(config: Config, run_dir: Path, environment: dict[str, str]) -> str:
    """Train together with the first machine of a job, which has its lock and its folder, and return its state."""
    lock = driver_lock(run_dir)
    until = time.monotonic() + FOLLOW_SECONDS
    while time.monotonic() < until:
        state = job_state(config, run_dir)
        if state == COMPLETE:
            return state
        if state != "changed" and RunFolder(run_dir).job.exists() and is_leased_elsewhere(lock):
            _run_child(run_dir, environment)
            return job_state(config, run_dir)
        time.sleep(POLL_SECONDS)
    return RUNNING


def driver_lock(run_dir: Path) -> Path:
    """Return the lock file of the driver that has a job. Inside the run folder it would be moved aside with it."""
    return run_dir.parent / f".{run_dir.name}.lock"


def _run_child(run_dir: Path, environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "grouped_lm.jobs.worker", str(run_dir), str(os.getpid())]
    variables = os.environ | environment
    with (run_dir / LOG).open("ab") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=variables
        )
        try:
            return child.wait()
        except BaseException:  # Ctrl-C or SIGTERM here: the child saves first
            child.send_signal(signal.SIGTERM)
            child.wait()
            raise


def _record_end(run_dir: Path, code: int, before: int) -> str:
    """Return the state that the child left; write the reason if the child could not.

    `before` is the time stamp of result.json before the child: an older result says nothing about this end.
    """
    folder = RunFolder(run_dir)
    is_new = _written_at(folder.result) != before or code in (EXIT_INTERRUPTED, EXIT_PREEMPTED)
    result = (folder.read_result() if is_new else None) or {}
    state = result.get("state")
    if code == 0 and state == COMPLETE:
        return COMPLETE
    if state == INTERRUPTED and code > 0:
        return INTERRUPTED
    if state == FAILED and code >= 0:
        write_json(folder.result, result | {"exit_code": code})
    else:
        lines = (run_dir / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        why = next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")
        if code < 0:
            why = f"killed by signal {-code} ({signal.Signals(-code).name})"
        if code == -signal.SIGKILL:
            why += ", from outside or by the system for want of memory"
        folder.write_failure(why, exit_code=code)
    return FAILED


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
    """Give a folder that one driver shares with its workers, which may run on other machines, and remove it at the end.

    The ledgers of killed drivers are removed too.
    """
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with shared_lock(sweep_dir / ".drivers.lock"):  # a ledger without its lock looks stale to another driver
            for stale in sweep_dir.glob(".driver-*"):
                with contextlib.suppress(Timeout, OSError), shared_lock(stale / ".lock", 0):
                    shutil.rmtree(stale)
            made = tempfile.TemporaryDirectory(prefix=".driver-", dir=sweep_dir, ignore_cleanup_errors=True)
            ledger = Path(stack.enter_context(made))
            stack.enter_context(shared_lock(ledger / ".lock"))
        yield ledger


@dataclass(frozen=True)
class SweepLimits:
    """Which jobs one call of a driver may start. `ledger` is the folder that it shares with its workers."""

    ledger: Path
    max_jobs: int | None = None
    fail_fast: bool = False
    only_failed: bool = False

    def allow(self, state: str) -> bool:
        """Return whether a job in `state` may start now, and count it if so."""
        if self.only_failed and state != FAILED:
            return False
        if self.fail_fast and (self.ledger / FAILED).exists():
            return False
        for number in range(self.max_jobs if self.max_jobs is not None else 0):
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # no ledger: the driver was killed
                (self.ledger / f"start-{number}").touch(exist_ok=False)
                return True
        return self.max_jobs is None

    def give_back(self) -> None:
        """Take back one start that `allow` counted: another driver has the job."""
        for start in self.ledger.glob("start-*"):
            with contextlib.suppress(FileNotFoundError):
                start.unlink()
                return

    def note(self, state: str, run_dir: Path) -> None:
        """Record the state of a job for the rest of this call."""
        with contextlib.suppress(FileNotFoundError):  # no ledger: a queued job can outlive its driver
            (self.ledger / state).touch()
            if state == RUNNING:
                (self.ledger / f"{RUNNING}-{run_dir.name}").touch()

    def left_to_others(self, run_dir: Path | None = None) -> bool:
        """Return whether another driver had this job, or any job, when this driver came to it."""
        return (self.ledger / (RUNNING if run_dir is None else f"{RUNNING}-{run_dir.name}")).exists()


def run_limited(config: Config, run_dir: Path, limits: SweepLimits, wait: bool, share: Share) -> float:
    """Run one job in its share of the machine, if the limits allow it, and return its validation loss.

    That is infinite for a job that is not complete, and `DIVERGED_LOSS` for one that diverged.

    With `wait` it only waits for jobs of other drivers, and takes them over if these die.
    """
    state = job_state(config, run_dir)
    if state != COMPLETE and (not wait or limits.left_to_others(run_dir)):
        with share.environment(config.train.device, processes=config.train.devices) as environment:
            state = job_state(config, run_dir)  # waiting for a slot can take hours
            if is_follower(config):
                state = follow_job(config, run_dir, environment)
            elif state != COMPLETE and (wait or limits.allow(state)):
                state = run_job(config, run_dir, wait=wait, environment=environment)
                limits.note(state, run_dir)
                if state == RUNNING and not wait:
                    limits.give_back()
    result = RunFolder(run_dir).read_result() or {}
    if state != COMPLETE:
        return DIVERGED_LOSS if result.get("exit_code") == DivergedError.exit_code else math.inf
    return result["val/loss"]


class SweepDisplay:
    """A live table on a terminal. Elsewhere a line for each job that ends.

    `find_jobs` returns the jobs known so far. A search may still add some, up to `total`.
    """

    def __init__(self, find_jobs: Callable[[], list[tuple[Config, Path]]], total: int) -> None:
        self._find_jobs, self._total = find_jobs, total
        self._console = Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._reported = {
            path: _written_at(RunFolder(path).result)
            for config, path in find_jobs()
            if job_state(config, path) in (COMPLETE, FAILED)
        }
        """When the result was written that was reported, or was there before, by job."""
        self._ended_before = self._ended = len(self._reported)
        self._last_end = self._started
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "SweepDisplay":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._console.is_terminal:
            with Live(self.table(), console=self._console, refresh_per_second=2, transient=True) as live:
                while not self._stop.wait(POLL_SECONDS):
                    live.update(self.table())
        while not self._stop.wait(POLL_SECONDS):
            self._report_ended()
        self._report_ended()

    def _report_ended(self) -> None:
        """Print a line for each job that ended since the last call, also for one that is repeated and ended before.

        A job whose driver still has it may get another result at once (`_record_end`), and waits for the next call.
        """
        for config, path in self._find_jobs():
            state, written = job_state(config, path), _written_at(RunFolder(path).result)
            is_new = state in (COMPLETE, FAILED) and written != self._reported.get(path)
            if is_new and not is_held(driver_lock(path)):
                self._reported[path] = written
                result = RunFolder(path).read_result() or {}
                text = one_line(result) if state == COMPLETE else failure_reason(path)
                say(f"{len(self._reported)}/{self._total} {path.name}: {state}  {text}")

    def table(self) -> RichTable:
        """Return the state of every job, with the estimated time left."""
        jobs, rows, width = self._find_jobs(), [], self._console.width
        longest = max((min(len(path.name), width // NAME_SHARE) for _, path in jobs), default=0)
        for config, path in jobs:
            state = job_state(config, path)
            metrics = last_metrics(path) if state != "changed" else {}
            row = {"job": shorten_middle(path.name, width // NAME_SHARE), "state": state}
            if "trainer/step" in metrics:
                row["step"] = f"{metrics['trainer/step']}/{config.train.max_steps}"
            figures = one_line(metrics, width - longest - OTHER_COLUMNS)
            rows.append(row | {"figures": failure_reason(path) if state == FAILED else figures})
        ended = sum(row["state"] in (COMPLETE, FAILED) for row in rows)
        so_far = f"{format_seconds(time.monotonic() - self._started)} so far"
        title = f"{ended}/{self._total} jobs, {so_far}{self._time_left(ended)}"
        return Table(columns=columns("job; state; step; last figures = figures"), rows=rows, title=title).terminal()

    def _time_left(self, ended: int) -> str:
        """Return the mean time of the jobs that ended, for each job left, less the time since the last one ended."""
        now = time.monotonic()
        if ended != self._ended:
            self._ended, self._last_end = ended, now
        ended_now = ended - self._ended_before
        if ended_now <= 0 or ended == self._total:
            return ""
        mean, left = (self._last_end - self._started) / ended_now, self._total - ended
        return f", about {format_seconds(max(mean * left - (now - self._last_end), mean * (left - 1)))} left"
