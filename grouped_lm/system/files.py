"""Small files, and locks. A reader sees the old file or the whole new one, never half of one."""

import json
import math
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, LeaseCompromise, SoftFileLease, Timeout

from grouped_lm.errors import BusyError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename it. An error leaves no temporary file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # random: several machines share folders
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, in the manner of `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, in the manner of `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json_dict(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`; None if there is no file, or no readable object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


LEASE_S = 30.0
"""A lease is over when nobody has renewed it for so many seconds. Its holder does so three times in that time."""


@contextmanager
def shared_lock(path: Path, timeout: float = -1.0) -> Iterator[None]:
    """Hold a lock file against the processes of all machines that see it.

    flock keeps the processes of one machine apart, and the kernel releases it when a process dies. Some file systems
    (NFS without its lock service, FUSE) do not tell other machines about it. So a lease stands beside the lock file. A
    lease that a dead machine has left delays this call by `LEASE_S` seconds.

    Args:
        path: the lock file. Its folder exists.
        timeout: seconds to wait for another process of this machine; a negative number waits without limit.

    Raises:
        Timeout: another process holds the lock.
    """
    with FileLock(path, timeout=timeout):
        lease = SoftFileLease(lease_of(path), lease_duration=LEASE_S, on_compromise=end_if_taken)
        try:
            lease.acquire(timeout=0)
        except Timeout:
            outlive(lease, path, math.inf if timeout < 0 else LEASE_S * 1.2)
        try:
            yield
        finally:
            lease.release()


def outlive(lease: SoftFileLease, lock: Path, seconds: float) -> None:
    """Acquire a lease when its holder releases it, or does not renew it for `LEASE_S` seconds.

    The lease can do the latter itself on file systems that exchange two files at once. NFS and most of FUSE cannot.

    Raises:
        Timeout: the holder has renewed the lease in `seconds` seconds.
    """
    path, start = lease_of(lock), time.monotonic()
    seen = read_claim(path)
    since, warned = start, False
    while True:
        with suppress(Timeout):
            lease.acquire(timeout=0)
            return
        now = time.monotonic()
        if (claim := read_claim(path)) != seen:
            seen, since = claim, now
        # A process of this machine that lives holds the lock file, which is ours.
        if claim is not None and (is_of_this_machine(claim[1]) or now - since > LEASE_S):
            remove_claim(path, claim)
        elif now - start > seconds:
            raise Timeout(str(path))
        elif not warned:
            waiting, warned = f"waiting {LEASE_S:.0f} s for a sign of it", True
            print(f"gvc: {lock} is held on another machine, or was when that ended: {waiting}", file=sys.stderr)
        time.sleep(LEASE_S / 100)


def read_claim(lease: Path) -> tuple[int, str] | None:
    """Return when a lease was renewed, in nanoseconds, and by whom. None if nobody holds it."""
    try:
        return lease.stat().st_mtime_ns, lease.read_text(encoding="utf-8")
    except OSError:
        return None


def remove_claim(lease: Path, claim: tuple[int, str]) -> None:
    """Remove a lease, unless somebody has renewed or taken it since `claim` was read."""
    aside = lease.with_name(f"{lease.name}.{secrets.token_hex(8)}.tmp")
    with suppress(OSError):  # another machine was faster
        lease.rename(aside)
        if read_claim(aside) != claim and not lease.exists():
            aside.rename(lease)
        aside.unlink()


def end_if_taken(loss: LeaseCompromise) -> None:
    """End this process if another one has taken its lease: it was stopped for so long that it seemed to be dead."""
    if loss.reason == "owner-changed":
        print(f"gvc: {loss.lock_file} was taken by another machine while this process slept: it ends", file=sys.stderr)
        os._exit(BusyError.exit_code)  # the thread of the lease calls this; files are written by renaming


def is_of_this_machine(claim: str) -> bool:
    """Return whether the text of a lease names this machine."""
    host = re.search(r"^host=([^?\n]*)", claim, re.MULTILINE)  # "?" and what follows name a container
    return host is not None and host[1] == socket.gethostname()


def lease_of(lock: Path) -> Path:
    """Return the path of the lease beside a lock file."""
    return lock.with_name(f"{lock.name.removesuffix('.lock')}.lease.lock")


def is_leased_elsewhere(lock: Path) -> bool:
    """Return whether another machine has renewed its lease of a lock file in the last `LEASE_S` seconds."""
    claim = read_claim(lease_of(lock))
    return claim is not None and time.time() - claim[0] / 1e9 < LEASE_S and not is_of_this_machine(claim[1])


@contextmanager
def hold_lock(path: Path, busy: str, timeout: float = 0.0) -> Iterator[None]:
    """Hold a lock file, in a folder that is made. The kernel releases it when the process dies.

    Raises:
        BusyError: another process holds it after `timeout` seconds. `busy` is the text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(shared_lock(path, timeout))
        except Timeout:
            raise BusyError(busy) from None
        yield
