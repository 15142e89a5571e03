"""Small files, and locks. A reader sees the old file or the whole new one, never half of one."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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


@contextmanager
def hold_lock(path: Path, busy: str, timeout: float = 0.0) -> Iterator[None]:
    """Hold a lock file, in a folder that is made. The kernel releases it when the process dies.

    Raises:
        BusyError: another process holds it after `timeout` seconds. `busy` is the text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(path).acquire(timeout=timeout)
    except Timeout:
        raise BusyError(busy) from None
    with held:
        yield
