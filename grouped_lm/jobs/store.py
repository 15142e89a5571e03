"""Records of finished jobs in a folder, so that a killed driver continues where it was."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from grouped_lm.system.files import hold_lock, read_json_dict, write_json


class JobStore:
    """One JSON file per job in the folder `kind` of a driver's folder. A damaged file counts as absent."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.records = folder, folder / kind

    def lock(self, busy: str) -> AbstractContextManager[None]:
        """Make the folder and hold it for this process, or raise a BusyError with the text `busy`."""
        return hold_lock(self.folder / ".lock", busy)

    def read(self, job: str) -> dict[str, Any] | None:
        """Return the record of a job, and None if there is none."""
        return read_json_dict(self.path(job))

    def write(self, job: str, record: dict[str, Any]) -> None:
        """Write the record of a job."""
        self.records.mkdir(parents=True, exist_ok=True)
        write_json(self.path(job), record)

    def path(self, job: str, suffix: str = "json") -> Path:
        """Return the path of a job's record, or of another file beside it."""
        return self.records / f"{job}.{suffix}"
