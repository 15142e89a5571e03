"""Locks in folders of several machines, of which each knows only the locks of its own processes."""

import os
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
