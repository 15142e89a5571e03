"""A process that was suspended is not one that hangs."""

import os
import signal
import time

import pytest

from grouped_lm.system.watchdog import STACKS, Watchdog

LIMIT_S = 3.0


def work(cpu_s: float) -> None:
    """Compute for so long. A clock would go on while the process is suspended."""
    start = time.process_time()
    while time.process_time() - start < cpu_s:
        pass


def watched(folder, pipe: int, hangs: bool) -> None:
    with Watchdog(folder, LIMIT_S / 60, lambda reason: None) as watchdog:
        os.write(pipe, b".")
        for _ in range(10):
            work(0.2)
            if hangs:
                time.sleep(60)
            watchdog.beat()


@pytest.mark.parametrize(("hangs", "code"), [(False, 0), (True, 1)])
def test_a_suspended_process_goes_on_and_one_that_hangs_does_not(tmp_path, hangs, code):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        watched(tmp_path, writing, hangs)
        os._exit(0)
    os.read(reading, 1)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    time.sleep(2 * LIMIT_S)  # what is tested is that this time does not count
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert (tmp_path / STACKS).exists() == hangs
