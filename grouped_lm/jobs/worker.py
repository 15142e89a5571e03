"""`python -m grouped_lm.jobs.worker RUN_FOLDER PARENT_PID [SCRATCH]`: one job of a sweep, or one of a run's processes.

With a SCRATCH, a folder that holds the job, its parent is torch's launcher, which starts all processes again when one
fails: an error that all have is left there instead, and so are a stop that all agreed on, and the result. An error of
this process alone makes it fail, so that no other process waits. After the restart all raise it (`join_process_group`).
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
from grouped_lm.system.signals import exit_on_sigterm

PR_SET_PDEATHSIG = 1


def stop_with_parent(parent: int) -> None:
    """Ask Linux for a SIGTERM when the driver dies, so that a killed sweep leaves nobody training unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we could ask
        sys.exit(0)


def train_job(job: Path, run_dir: Path) -> tuple[dict[str, Any], GvcError | None]:
    """Train the job that lies in a file, and return what became of it (a result, an error, a stop) and the error."""
    try:
        with exit_on_sigterm():  # until the training takes the signals over
            return {"result": run_training(read_job(job), run_dir)}, None
    except KeyboardInterrupt:
        return {"stopped": EXIT_INTERRUPTED}, None
    except SystemExit as stop:
        return {"stopped": stop.code}, None
    except GvcError as error:
        return {"error": describe_error(error), "agreed": error.agreed}, error


def main() -> None:
    """Train, and leave the outcome or exit as `gvc train` would."""
    run_dir, scratch = Path(sys.argv[1]), Path(sys.argv[3]) if len(sys.argv) > 3 else None
    stop_with_parent(int(sys.argv[2]))
    told, raised = train_job(scratch / JOB if scratch else RunFolder(run_dir).job, run_dir)
    if scratch is not None:
        if os.environ["LOCAL_RANK"] == "0" or raised is not None:  # one process of a machine speaks for all
            write_json(scratch / OUTCOME, told)
        sys.stdout.flush()
        sys.stderr.flush()
        # at once, and with `raised` alive: a DDP model that is taken apart after its process group can wait for ever
        os._exit(0 if told.get("agreed", True) else EXIT_FAILED)
    if "stopped" in told:
        sys.exit(told["stopped"])
    if raised is not None:
        if isinstance(raised, BusyError):
            sys.exit(BUSY_EXIT)
        print(f"gvc: error: {raised}", file=sys.stderr)
        sys.exit(raised.exit_code)


if __name__ == "__main__":
    main()
