"""Hold a training at a checkpoint. Python imports this module at its start if `gate.Gate` has put it on PYTHONPATH."""

import os
import re
import select
import signal
import time
from pathlib import Path

_rename = os.rename
_step, _file = os.environ["GVC_TEST_GATE"].split(":", 1)
_reached = Path(f"{_file}.reached")


def rename(source, target, **options) -> None:
    """Rename; after the first checkpoint of the gate's step or later, wait for the gate's file or for a signal."""
    _rename(source, target, **options)
    step = re.fullmatch(r"step-(\d+)", Path(target).name)
    if step is None or int(step[1]) < int(_step) or _reached.exists():
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    _reached.touch()
    until = time.monotonic() + 300
    while not Path(_file).exists() and time.monotonic() < until and not select.select([reader], [], [], 0.01)[0]:
        pass
    signal.set_wakeup_fd(before)
    os.close(reader)
    os.close(writer)


os.rename = rename
