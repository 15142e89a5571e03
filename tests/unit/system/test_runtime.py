"""What the process is told before it works."""

import errno
import os
import subprocess
import sys

import pytest

from grouped_lm.errors import DiskError, disk_errors
from grouped_lm.system.files import write_text
from grouped_lm.system.runtime import keep_freed_memory

PAGES = """
import resource, torch
from grouped_lm.system.runtime import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24)  # 64 MiB, above what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, told, _, then = faults(), keep_freed_memory(), faults(), faults()
print(int(told), first, then)
"""


def test_freed_memory_is_used_again_without_new_pages():
    out = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    told, first, then = map(int, out.stdout.split())
    if not told:
        pytest.skip("no glibc here")
    assert then < first / 2  # a small block at the end of the heap can cost one or two of the ten their place


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r": the disk is full \([\d,]+ MiB free\); make room and run the same command again$"),
        (errno.EDQUOT, r": the disk is full \([\d,]+ MiB free\); make room and run the same command again$"),
        (errno.EACCES, ": Permission denied; give another place$"),
        (errno.EROFS, ": Read-only file system; give another place$"),
    ],
)
def test_room_is_advised_where_room_lacks(tmp_path, number, message):
    with pytest.raises(DiskError, match=f"^cannot write {tmp_path}{message}"), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_text_that_cannot_be_put_in_its_place_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
