"""Small files, and locks. A reader sees the old file or the whole new one, never half of one."""

import json
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLease, Timeout

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
        lease = SoftFileLease(lease_of(path), lease_duration=LEASE_S)
        try:
            lease.acquire(timeout=0)
        except Timeout:  # this machine's processes are kept away by flock, so it is another machine's
            waiting = f"waiting {LEASE_S:.0f} s for a sign of it"
            print(f"gvc: {path} is held on another machine, or was when that ended: {waiting}", file=sys.stderr)
            lease.acquire(timeout=-1 if timeout < 0 else LEASE_S * 1.2)
        try:
            yield
        finally:
            lease.release()


def lease_of(lock: Path) -> Path:
    """Return the path of the lease beside a lock file."""
    return lock.with_name(f"{lock.name.removesuffix('.lock')}.lease.lock")


def is_leased_elsewhere(lock: Path) -> bool:
    """Return whether another machine has renewed its lease of a lock file in the last `LEASE_S` seconds."""
    try:
        lease = lease_of(lock)
        age, holder = time.time() - lease.stat().st_mtime, lease.read_text(encoding="utf-8")
    except OSError:
        return False
    return age < LEASE_S and f"\nhost={socket.gethostname()}" not in holder


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
