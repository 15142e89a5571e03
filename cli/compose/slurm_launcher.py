"""What Hydra's launcher for SLURM lacks on a real cluster.

SLURM refuses an array with more jobs than its MaxArraySize. And a job that was cancelled before it started is in no
list of SLURM, so submitit waits for it without end. `install` makes arrays that the cluster accepts, and asks `squeue`
which jobs are left. SLURM stops a job for one of a higher partition with a SIGTERM, which submitit ignores.
`queued_again` is its answer.
"""

import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus

from grouped_lm.errors import EXIT_PREEMPTED
from grouped_lm.system.signals import signal_handlers

MAX_ARRAY = 1001
"""SLURM's own default of MaxArraySize."""
STATE_SECONDS = 30.0
"""Seconds between two questions about the jobs that are left."""
FILE_SECONDS = 10.0
"""Seconds that a shared file system may take to show the result of a job that has ended."""


class Queue:
    """The jobs of this user that wait or run."""

    def __init__(self) -> None:
        self._asked, self._jobs = -math.inf, set[str]()

    def has(self, job: str) -> bool:
        """Return whether a job such as 7_2 was in the queue at the last question. True if SLURM does not answer."""
        if time.monotonic() - self._asked > STATE_SECONDS:
            done = subprocess.run(
                ["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                return True
            self._asked, self._jobs = time.monotonic(), set(done.stdout.split())
        return job in self._jobs


def install() -> None:
    """Let Hydra's launcher use `launch`. Hydra takes no launcher from outside of its own package for plugins."""
    Plugins.instance()  # loads the module again
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    SlurmLauncher.launch = launch


def launch(self: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
    """Submit the jobs, wait for them, and return their results. A job that SLURM ended has an infinite loss."""
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
    from submitit.slurm.slurm import SlurmJob

    job_class: Any = SlurmJob
    plain, queue, size, results = job_class.results, Queue(), max_array_size(), list[JobReturn]()
    warnings.filterwarnings("ignore", message='"cpus_per_gpu" requires')  # submitit means several tasks on a machine
    job_class.results = lambda job: results_of(job, plain, queue)
    try:
        for start in range(0, len(job_overrides), size):
            part = job_overrides[start : start + size]
            results += BaseSubmititLauncher.launch(self, part, initial_job_idx + start)
    finally:
        job_class.results = plain
    return results


def results_of(job: Any, plain: Callable[[Any], list[JobReturn]], queue: Queue) -> list[JobReturn]:
    """Return the results of a submitit job. One without a result has an infinite loss, and a line on stderr."""
    from submitit.core.utils import FailedJobError

    gone_since = math.inf
    while not job.paths.result_pickle.exists():
        gone_since = math.inf if queue.has(job.job_id) else min(gone_since, time.monotonic())
        if time.monotonic() - gone_since > FILE_SECONDS:
            break
        time.sleep(1.0)
    else:
        try:
            return plain(job)
        except FailedJobError:
            pass
    print(f"gvc: SLURM job {job.job_id} ended without a result: see {job.paths.stderr}", file=sys.stderr)
    return [JobReturn(status=JobStatus.COMPLETED, _return_value=math.inf)]


@contextmanager
def queued_again() -> Iterator[None]:
    """Queue this SLURM job again after the block if SLURM has sent a SIGTERM in it: the training has saved.

    A job that SLURM has ended already (`scancel`, the time limit, a preemption without a grace time) is left to SLURM.
    """
    stopped: list[int] = []
    with signal_handlers((signal.SIGTERM,), lambda number, frame: stopped.append(number)):
        yield
    if not stopped:
        return
    job = os.environ["SLURM_JOB_ID"]
    if os.environ.get("SLURM_PROCID", "0") == "0" and ask("squeue", "-h", "-j", job, "-o", "%T").strip() == "RUNNING":
        ask("scontrol", "requeue", job)
    raise SystemExit(EXIT_PREEMPTED)  # submitit writes no result then, and the driver waits for the next try


def ask(*command: str) -> str:
    """Return what a command of SLURM prints, whether it fails or not."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def max_array_size() -> int:
    """Return the number of jobs that this cluster accepts in one array."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1]) if found else MAX_ARRAY)
