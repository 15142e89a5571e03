"""`python -m grouped_lm.cli.child PARENT_PID WORDS...`: a `gvc` of its own that stops when the one above it dies."""

import sys

from grouped_lm.jobs.worker import stop_with_parent

from .main import main

if __name__ == "__main__":
    stop_with_parent(int(sys.argv[1]))
    main(sys.argv[2:])
