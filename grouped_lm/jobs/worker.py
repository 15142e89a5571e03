"""`python -m grouped_lm.jobs.worker RUN_FOLDER PARENT_PID [SCRATCH]`: a job of a sweep, or one process of a run.

With SCRATCH the parent is torch's launcher, and the folder SCRATCH holds the job. The launcher starts all processes
again when one of them fails. An outcome that all processes share (result, error or stop) must not do that: it is
written to SCRATCH, and the exit code is 0. An error of this process alone exits with 1, so that no other process waits
for it. After the restart all processes raise it (`join_process_group`).
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from grouped_lm.distributed.process_group import describe_error
from grouped_lm.errors import EXIT_FAILED, EXIT_INTERRUPTED, BusyError, GvcError
from grouped_lm.jobs.launch import JOB, OUTCOME, run_training
from grouped_lm.jobs.sweep import BUSY_EXIT
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.load import read_job
from grouped_lm.system.files import write_json
from grouped_lm.system.phases import show_phases
from grouped_lm.system.signals import exit_on_sigterm

PR_SET_PDEATHSIG = 1


def stop_with_parent(parent: int) -> None:
    """Ask Linux for a SIGTERM when the parent dies, so that no job of a killed sweep trains unnoticed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before this call
        sys.exit(0)


def train_job(job: Path, run_dir: Path, processes: int) -> tuple[dict[str, Any], GvcError | None]:
    """Train the job in the file `job`, and return the outcome (a result, an error or a stop) and the error."""
    try:
        with exit_on_sigterm():  # until the training handles signals itself
            return {"result": run_training(read_job(job), run_dir, processes)}, None
    except KeyboardInterrupt:
        return {"stopped": EXIT_INTERRUPTED}, None
    except SystemExit as stop:
        return {"stopped": stop.code}, None
    except GvcError as error:
        return {"error": describe_error(error), "agreed": error.agreed}, error


def main() -> None:
    """Train, then write the outcome or exit as `gvc train` would."""
    run_dir, scratch = Path(sys.argv[1]), Path(sys.argv[3]) if len(sys.argv) > 3 else None
    if hasattr(signal, "SIGUSR2"):  # SLURM sends it to all processes of a job; submitit answers it with a SIGTERM to us
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    stop_with_parent(int(sys.argv[2]))
    show_phases()
    processes = int(os.environ["WORLD_SIZE"]) if scratch else 1
    outcome, error = train_job(scratch / JOB if scratch else RunFolder(run_dir).job, run_dir, processes)
    if scratch is not None:
        if os.environ["LOCAL_RANK"] == "0" or error is not None:
            write_json(scratch / OUTCOME, outcome)
        sys.stdout.flush()
        sys.stderr.flush()
        # os._exit while `error` holds the frames: a DDP model that is deleted after its process group can hang
        os._exit(0 if outcome.get("agreed", True) else EXIT_FAILED)
    if "stopped" in outcome:
        sys.exit(outcome["stopped"])
    if error is not None:
        if isinstance(error, BusyError):
            sys.exit(BUSY_EXIT)
        print(f"gvc: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
