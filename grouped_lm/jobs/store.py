"""Records of finished jobs in a folder, so that a killed driver continues where it was."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grouped_lm.errors import BusyError
from grouped_lm.system.files import read_json_dict, write_json


class JobStore:
    """One JSON file per job. A file is whole or absent, and a damaged one counts as absent.

    Args:
        folder: of the driver; only one process works in it at a time.
        kind: name of the folder below it that holds the records.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.records = folder, folder / kind

    @contextlib.contextmanager
    def lock(self, busy: str) -> Iterator[None]:
        """Make the folder and hold it for this process.

        Args:
            busy: the error's text if another process holds it.

        Raises:
            BusyError: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise BusyError(busy) from None
        try:
            yield
        finally:
            lock.release()

    def read(self, job: str) -> dict[str, Any] | None:
        """Return the record of a job; None if there is none."""
        return read_json_dict(self.path(job))

    def write(self, job: str, record: dict[str, Any]) -> None:
        """Write the record of a job.

        Raises:
            OSError: the file system refused.
        """
        self.records.mkdir(parents=True, exist_ok=True)
        write_json(self.path(job), record)

    def path(self, job: str, suffix: str = "json") -> Path:
        """Return the path of a job's record, or of another file beside it."""
        return self.records / f"{job}.{suffix}"
