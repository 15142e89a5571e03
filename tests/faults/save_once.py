"""One save of step 3 beside two older checkpoints, in a process that a test attaches strace to: PARENT, then a line."""

import sys
from pathlib import Path

from grouped_lm.checkpoint import write_checkpoint
from grouped_lm.errors import DiskError

FILES = {"state.safetensors": bytes(range(256)) * 64, "state.json": b'{"step": 3}'}

if __name__ == "__main__":
    import hashlib

    hashlib.sha256(b"warm").hexdigest()
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        write_checkpoint(Path(sys.argv[1]), 3, FILES, keep=2)
    except DiskError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
