"""Locks in folders of several machines, of which each knows only the locks of its own processes."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from grouped_lm.errors import BusyError
from grouped_lm.runs.table import is_held
from grouped_lm.system import files
from grouped_lm.system.files import hold_lock, lease_of, shared_lock

FOREIGN = "filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken={}\nduration={}\n"


@pytest.fixture
def lock(tmp_path, monkeypatch) -> Path:
    """A lock file whose leases end after two seconds, and a lease of another machine beside it."""
    monkeypatch.setattr(files, "LEASE_S", 2.0)
    path = tmp_path / ".lock"
    lease_of(path).write_text(FOREIGN.format("0" * 32, 2.0))
    return path


def test_a_lease_that_another_machine_renews_is_respected(lock, capsys):
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.02):
            os.utime(lease_of(lock))

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        assert is_held(lock)
        with pytest.raises(BusyError, match="in use"), hold_lock(lock, "in use"):
            pass
    finally:
        ended.set()
        renewing.join()
    assert "is held on another machine" in capsys.readouterr().err
    assert "host=elsewhere" in lease_of(lock).read_text()


def test_a_lease_that_a_lost_machine_left_is_taken_over(lock):
    with shared_lock(lock, 0):
        assert "host=elsewhere" not in lease_of(lock).read_text()
        with pytest.raises(Timeout), shared_lock(lock, 0):
            pass
    assert not lease_of(lock).exists()
    assert not is_held(lock)


def test_a_file_system_without_exchange_takes_over_too(lock, monkeypatch):
    """NFS and FUSE do not exchange two files at once."""
    monkeypatch.setattr("filelock._soft._exclusive._recovery.exchange_names", lambda source, target: False)
    with shared_lock(lock, 0):
        assert "host=elsewhere" not in lease_of(lock).read_text()
    assert list(lock.parent.iterdir()) == [lock]


def test_a_machine_whose_name_begins_like_ours_is_another_one():
    name = socket.gethostname()
    assert files.is_of_this_machine(f"filelock/2\npid=1\nhost={name}?pidns-f0\nmode=lease")
    assert not files.is_of_this_machine(f"filelock/2\npid=1\nhost={name}0\nmode=lease")


SLEEPER = """
import sys, time
from pathlib import Path
from grouped_lm.system import files
files.LEASE_S = 0.6
with files.shared_lock(Path(sys.argv[1]), 0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_holder_ends_when_another_machine_has_taken_its_lease(tmp_path):
    lock = tmp_path / ".lock"
    sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER, lock], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert sleeper.stdout.readline() == b"held\n"
    taken = tmp_path / "taken"
    taken.write_text(FOREIGN.format("1" * 32, 0.6))
    taken.rename(lease_of(lock))
    _, said = sleeper.communicate(timeout=60)
    assert sleeper.returncode == 3
    assert b"taken by another machine" in said
