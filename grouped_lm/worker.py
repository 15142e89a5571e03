"""`python -m grouped_lm.worker RUN_FOLDER PARENT_PID`: one job of a sweep, in a process of its own."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from grouped_lm.errors import BusyError, GvcError
from grouped_lm.signals import exit_on_sigterm
from grouped_lm.sweep import BUSY_EXIT, read_job
from grouped_lm.train import train

PR_SET_PDEATHSIG = 1


def stop_with_parent(parent: int) -> None:
    """Ask Linux for a SIGTERM when the driver dies, so that a killed sweep leaves nobody training unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we could ask
        sys.exit(0)


def main() -> None:
    """Train the job that lies in the folder, and exit as `gvc train` would."""
    run_dir = Path(sys.argv[1])
    stop_with_parent(int(sys.argv[2]))
    try:
        with exit_on_sigterm():  # until the training takes the signals over
            train(read_job(run_dir), run_dir)
    except BusyError:
        sys.exit(BUSY_EXIT)
    except GvcError as error:
        print(f"gvc: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
