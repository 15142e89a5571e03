"""A save that fails or dies at any of its system calls, and bytes that change on the disk."""

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fault_tools import fork, replay, trials, wait
from save_once import FILES

from grouped_lm.errors import CheckpointError, DiskError
from grouped_lm.runs import checkpoint
from grouped_lm.runs.checkpoint import list_checkpoints, load_latest, verify, write_checkpoint

OLD = {"state.safetensors": b"old" * 999, "state.json": b'{"step": 2}'}
CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "read", "fstat")
SYSCALLS = ("openat", "mkdir", "write", "fsync", "close", "rename", "read", "unlinkat", "rmdir", "getdents64")


class FaultyOs:
    """The `os` of the checkpoint module: counts its calls, and fails or dies at one of them."""

    def __init__(self, at: int | None = None, fault: int | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self._at, self._fault = at, fault

    def __getattr__(self, name: str):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args, **kwargs):
            subject = args[0]
            shown = str(Path(f"/proc/self/fd/{subject}").readlink()) if isinstance(subject, int) else str(subject)
            self.calls.append((name, shown))
            if len(self.calls) == self._at:
                if self._fault is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(self._fault, os.strerror(self._fault))
            return real(*args, **kwargs)

        return call


def two_old(parent: Path) -> Path:
    for step in (1, 2):
        write_checkpoint(parent, step, OLD, keep=2)
    return parent


def save_with(parent: Path, faulty: FaultyOs) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "os", faulty)
        write_checkpoint(parent, 3, FILES, keep=2)


def assert_old_or_new(parent: Path, what: object) -> int:
    for folder in list_checkpoints(parent):
        verify(folder)  # nothing that looks like a checkpoint is half of one
    found = load_latest(parent)
    assert found in ((2, OLD), (3, FILES)), what
    assert not list(parent.glob("corrupt-*")), what
    assert write_checkpoint(parent, 4, FILES, keep=2).exists(), what
    assert load_latest(parent) == (4, FILES), what
    return found[0]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(None, id="kill", marks=pytest.mark.faults),
        pytest.param(errno.ENOSPC, id="ENOSPC"),
        pytest.param(errno.EIO, id="EIO", marks=pytest.mark.faults),
    ],
)
def test_every_call_of_a_save_may_fail(tmp_path, fault, figure):
    dry = FaultyOs()
    save_with(two_old(tmp_path / "dry"), dry)
    outcomes = []
    for at in range(1, len(dry.calls) + 1):
        parent = two_old(tmp_path / str(at))
        if fault is None:
            assert wait(fork(lambda at=at, parent=parent: save_with(parent, FaultyOs(at)), tmp_path / "log")) == -9
        else:
            with contextlib.suppress(DiskError):  # what fails after the save is over is no failure of it
                save_with(parent, FaultyOs(at, fault))
        outcomes.append(assert_old_or_new(parent, dry.calls[at - 1]))
    assert {2, 3} == set(outcomes)
    assert len(outcomes) > 20
    name = "kill" if fault is None else errno.errorcode[fault]
    figure(
        f"{name} at every call of a save (in the process)", f"{len(outcomes)} of {len(outcomes)}: the old or the new"
    )


def test_files_are_flushed_before_the_one_rename_and_the_folder_after(tmp_path):
    faulty = FaultyOs()
    save_with(two_old(tmp_path / "run"), faulty)
    renames = [i for i, (name, _) in enumerate(faulty.calls) if name == "rename"]
    flushed = [Path(shown).name for name, shown in faulty.calls[: renames[0]] if name == "fsync"]
    assert sorted(flushed) == [
        ".tmp-step-00000003-" + str(os.getpid()),
        "manifest.json",
        "state.json",
        "state.safetensors",
    ]
    assert flushed[-1].startswith(".tmp-")
    assert faulty.calls[renames[0]][1].endswith(flushed[-1])
    after = [shown for name, shown in faulty.calls[renames[0] :] if name == "fsync"]
    assert after[0] == str(tmp_path / "run")
    assert not any(name == "open" and "step-00000003/" in shown for name, shown in faulty.calls[: renames[0]])


def strace(parent: Path, *flags: str) -> SimpleNamespace:
    """Attach strace to a process that is about to save, let it, and return how it ended."""
    script = Path(__file__).with_name("save_once.py")
    saver = subprocess.Popen([sys.executable, str(script), str(parent)], stdout=subprocess.PIPE, text=True)
    assert saver.stdout.readline() == "ready\n"
    log = parent.with_suffix(".strace")
    tracer = subprocess.Popen(
        ["strace", "-qq", "-y", "-f", "-o", str(log), *flags, "-p", str(saver.pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 20
    while "TracerPid:\t0\n" in Path(f"/proc/{saver.pid}/status").read_text():
        assert tracer.poll() is None, tracer.stderr.read()
        assert time.monotonic() < until, "strace does not attach"
        time.sleep(0.002)
    saver.send_signal(signal.SIGUSR1)
    out, _ = saver.communicate(timeout=60)
    tracer.wait(timeout=20)
    tracer.stderr.close()
    return SimpleNamespace(code=saver.returncode, out=out, log=log.read_text(errors="replace"))


def can_trace(tmp_path: Path) -> str:
    """Return "" where strace may attach here, otherwise why not."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    try:
        strace(two_old(tmp_path / "probe"), "-e", "trace=fsync")
    except AssertionError as error:
        return f"strace cannot attach: {error}"
    return ""


@pytest.mark.faults
def test_every_system_call_of_a_save_may_fail(tmp_path, figure):
    promise = "kill, ENOSPC, EIO at every system call of a save (strace)"
    why_not = can_trace(tmp_path)
    if why_not:
        figure(promise, f"NOT RUN, {why_not}: see the lines of the calls in the process")
        pytest.skip(why_not)
    dry = strace(two_old(tmp_path / "dry"), "-e", "trace=" + ",".join(SYSCALLS))
    assert dry.code == 0
    calls = [m[1] for m in re.finditer(r"^\d+ +(\w+)\(", dry.log, re.MULTILINE)]
    assert_flushed(dry.log, tmp_path / "dry")
    outcomes: dict[str, int] = {}
    for fault in ("signal=KILL", "error=ENOSPC", "error=EIO"):
        for index in range(len(calls)):
            name, parent = calls[index], two_old(tmp_path / f"{fault}-{index}")
            nth = calls[: index + 1].count(name)
            ended = strace(parent, "-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={nth}")
            what = (fault, name, nth, ended.code, ended.out, ended.log[-300:])
            if fault == "signal=KILL":
                assert ended.code == -9, what
            else:
                assert ended.code in (0, 4), what
            kind = "new" if assert_old_or_new(parent, what) == 3 else "old"
            outcomes[kind] = outcomes.get(kind, 0) + 1
            shutil.rmtree(parent)
    assert min(outcomes.values()) > 10
    figure(promise, f"{sum(outcomes.values())} points: {outcomes['old']} left the old, {outcomes['new']} the new")


def assert_flushed(log: str, parent: Path) -> None:
    lines = log.splitlines()
    rename = next(i for i, line in enumerate(lines) if " rename(" in line and "step-00000003" in line)
    flushed = [m[1] for line in lines[:rename] if (m := re.search(r" fsync\(\d+<(.*?)>", line))]
    assert {Path(path).name for path in flushed} >= {*FILES, "manifest.json"}
    assert any(Path(path).name.startswith(".tmp-") for path in flushed)
    assert any(f"<{parent}>" in line and " fsync(" in line for line in lines[rename:])


def damage(folder: Path, rng: random.Random) -> str | None:
    """Change one file of a checkpoint; return what was done, None where it happened to change nothing."""
    path = rng.choice(sorted(folder.iterdir()))
    before = path.read_bytes()
    data = bytearray(before)
    kind = rng.choice(["flip", "truncate", "zero", "append", "delete"])
    place = rng.randrange(len(data))
    if kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del data[place:]
    elif kind == "zero":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    elif kind == "append":
        data += rng.randbytes(rng.randint(1, 64))
    path.write_bytes(data) if kind != "delete" else path.unlink()
    return f"{kind} {path.name} at {place}" if kind == "delete" or bytes(data) != before else None


def corrupt(tmp_path: Path, count: int) -> dict[str, int]:
    two_old(tmp_path / "good")
    write_checkpoint(tmp_path / "good", 3, FILES, keep=2)
    kinds: dict[str, int] = {}
    for seed, rng in trials("corrupt", count):
        parent = tmp_path / "now"
        shutil.copytree(tmp_path / "good", parent)
        done = None
        while done is None:
            done = damage(parent / "step-00000003", rng)
        with pytest.raises(CheckpointError):
            verify(parent / "step-00000003")
        assert load_latest(parent) == (2, OLD), (done, replay("corrupt", seed))
        assert list(parent.glob("corrupt-step-00000003-*")), (done, replay("corrupt", seed))
        shutil.rmtree(parent)
        kinds[done.split()[0]] = kinds.get(done.split()[0], 0) + 1
    return kinds


def test_some_damage(tmp_path):
    assert sum(corrupt(tmp_path, 100).values()) >= 1


@pytest.mark.faults
def test_all_damage_is_found(tmp_path, figure):
    kinds = corrupt(tmp_path, 2000)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    figure(
        "damaged checkpoints", f"{sum(kinds.values())} of {sum(kinds.values())} found, the one before used ({counted})"
    )


def test_the_last_two_good_ones_stay_when_one_between_is_damaged(tmp_path):
    two_old(tmp_path)
    (tmp_path / "step-00000002" / "state.json").write_bytes(b"{}")
    write_checkpoint(tmp_path, 3, FILES, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002", "step-00000003"]
    write_checkpoint(tmp_path, 4, FILES, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
