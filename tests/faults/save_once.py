"""One save of step 3 below PARENT, in a process that waits for SIGUSR1, so that a test can attach strace to it."""

import signal
import sys
from pathlib import Path

from grouped_lm.errors import DiskError
from grouped_lm.runs.checkpoint import write_checkpoint

FILES = {"state.safetensors": bytes(range(256)) * 64, "state.json": b'{"step": 3}'}

if __name__ == "__main__":
    import hashlib

    hashlib.sha256(b"warm").hexdigest()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    print("ready", flush=True)
    signal.sigwait({signal.SIGUSR1})  # none of the calls that are counted
    try:
        write_checkpoint(Path(sys.argv[1]), 3, FILES, keep=2)
    except DiskError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
