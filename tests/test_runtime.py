"""What the process is told before it works."""

import subprocess
import sys

import pytest

from grouped_lm.runtime import keep_freed_memory

PAGES = """
import resource, torch
from grouped_lm.runtime import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
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
    assert then < first / 20


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
