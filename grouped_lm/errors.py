"""Errors that end in one line and an exit code. Any other exception is a defect of gvc.

Exit codes: 0 done, 1 failed, 2 usage or config, 3 busy run folder or missing/bad data, 4 disk,
5 no usable checkpoint, 6 config changed since the checkpoint, 7 diverged, 8 out of memory,
75 preempted after a save, 130 interrupted after a save.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path


class GvcError(Exception):
    """A problem that the user can solve. The message is one line: what was given, what is allowed, what to do."""

    exit_code = 1
    agreed = False
    """Whether every process of a training raises it. If not, the others may wait for this one."""


class ConfigError(GvcError, ValueError):
    """A key or value outside what the schema allows."""

    exit_code = 2


class DataError(GvcError):
    """Missing, unreadable or empty data."""

    exit_code = 3


class RunFolderError(GvcError):
    """A run folder that is missing, in use, or already holds another run."""

    exit_code = 3


class BusyError(RunFolderError):
    """Another process trains in this run folder."""


class DiskError(GvcError):
    """The disk is full or refuses to be written."""

    exit_code = 4


class CheckpointError(GvcError):
    """No checkpoint that can be trusted."""

    exit_code = 5


class DriftError(GvcError):
    """The config on disk and the one given describe different runs."""

    exit_code = 6


class SchemaError(GvcError):
    """A run folder or checkpoint of another schema version. It is left unchanged."""

    exit_code = 6


class DivergedError(GvcError):
    """The loss or its gradient is no longer a finite number."""

    exit_code = 7
    agreed = True  # the loss is that of all processes together


class MemoryShortError(GvcError):
    """The device has too little memory for this config."""

    exit_code = 8


class InexactError(GvcError):
    """A head that a bench measured gives wrong values: a defect of gvc, on this machine."""


EXIT_FAILED = 1
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


@contextlib.contextmanager
def disk_errors(folder: Path, advice: str | None = None) -> Iterator[None]:
    """Turn an OSError into a `DiskError`: the folder, the reason, the free space if it is full, and what to do."""
    try:
        yield
    except OSError as error:
        what, to_do = why_refused(error)
        if is_full(error):
            free = shutil.disk_usage(next(p for p in (folder, *folder.resolve().parents) if p.exists())).free
            what += f" ({free / 2**20:,.0f} MiB free)"
        raise DiskError(f"cannot write {folder}: {what}; {advice or to_do}") from error


def is_full(error: OSError) -> bool:
    """Return whether the disk is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def why_refused(error: OSError) -> tuple[str, str]:
    """Return the reason of a file system's error, and what the user can do."""
    if is_full(error):
        return "the disk is full", "make room and run the same command again"
    return error.strerror or str(error), "give another place"
