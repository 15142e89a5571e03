"""Checkpoints on disk: folders that are complete or absent. They hold bytes, without torch and without pickle.

`checkpoints/step-00000100/` holds the given files and a `manifest.json` with their sizes and sha256. A save writes a
temporary folder, flushes it, renames it and reads it back. Only then older checkpoints are removed, but never the last
two good ones. A damaged checkpoint is renamed to `corrupt-*`, a warning is printed, and the one before it is used.
Every step of a save is a call of `os`, so that a test can make each of them fail or kill the process in it.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grouped_lm.config import SCHEMA_VERSION, check_schema
from grouped_lm.errors import CheckpointError, DiskError, SchemaError

MANIFEST = "manifest.json"
LEAST_KEPT = 2
"""Least number of good checkpoints to keep: the newest may be damaged after it was verified."""
_CHUNK = 1 << 20


def step_folder(parent: Path, step: int) -> Path:
    """Return the folder of a step."""
    return parent / f"step-{step:08d}"


def list_checkpoints(parent: Path) -> list[Path]:
    """Return the folders with the name of a checkpoint, oldest first."""
    folders = (p for p in parent.glob("step-*") if p.is_dir() and p.name[5:].isascii() and p.name[5:].isdigit())
    return sorted(folders, key=lambda p: int(p.name[5:]))


def write_checkpoint(parent: Path, step: int, files: dict[str, bytes], keep: int) -> Path:
    """Write the checkpoint of `step` into the folder of all checkpoints, and keep the `keep` >= 2 newest good ones.

    A kill at any moment leaves the old checkpoints complete.

    Raises:
        DiskError: the disk is full or cannot be written. Older checkpoints are unchanged.
    """
    target = step_folder(parent, step)
    temporary = parent / f".tmp-{target.name}-{os.getpid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(parent)
        os.mkdir(temporary)  # noqa: PTH102
        for name, data in files.items():
            _write_flushed(temporary / name, data)
        entries = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        manifest: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "step": step, "files": entries}
        manifest["sha256"] = _hash_manifest(manifest)
        _write_flushed(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        _fsync_folder(temporary)
        if target.exists():  # the same step again, after a resume
            _set_aside(target, "replaced")
        os.rename(temporary, target)  # noqa: PTH104
        _fsync_folder(parent)
        verify(target)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(f"checkpoint of step {step} could not be written to {parent}: {error}") from error
    with contextlib.suppress(OSError):  # it is saved; the next save removes old ones
        _prune(parent, max(LEAST_KEPT, keep))
    return target


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with the manifest, in pieces. The errors are those of `read_verified`."""
    for name, entry in _entries(folder).items():
        for _ in _pieces(folder / name, entry):
            pass


def read_verified(folder: Path) -> dict[str, bytes]:
    """Return every file of a checkpoint by name, after the comparison with the manifest.

    Raises:
        CheckpointError: a file is missing, added, not a plain file, or has another size or sha256.
        SchemaError: another version of gvc wrote it.
    """
    return {name: b"".join(_pieces(folder / name, entry)) for name, entry in _entries(folder).items()}


def load_latest(parent: Path, quarantine: bool = True) -> tuple[int, dict[str, bytes]] | None:
    """Return (step, files) of the newest good checkpoint, and None if there never was a checkpoint.

    `quarantine` renames damaged ones to `corrupt-*`. Only the process that holds the run's lock may do this: another
    one sees checkpoints disappear while the run is training.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
        SchemaError: another version of gvc wrote them.
    """
    if quarantine:
        _remove_leftovers(parent)
    checkpoints = list_checkpoints(parent)
    for folder in reversed(checkpoints):
        try:
            return int(folder.name[5:]), read_verified(folder)
        except CheckpointError as error:
            renamed = f"kept as {_set_aside(folder, 'corrupt').name}, " if quarantine else ""
            print(f"gvc: warning: {error}; {renamed}trying the one before", file=sys.stderr)
    if checkpoints or any(parent.glob("corrupt-*")):
        raise CheckpointError(f"no usable checkpoint in {parent}: all are damaged; move it away to start again")
    return None


def _hash_manifest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_flushed(path: Path, data: bytes) -> None:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)


def _fsync_folder(folder: Path) -> None:
    with _opened(folder, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _pieces(path: Path, entry: dict[str, Any] | None = None) -> Iterator[bytes]:
    """Yield the content of a plain file, and compare it with its `entry` in the manifest.

    Links, pipes and devices are refused: the folder may be a stranger's.
    """
    digest, size, limit = hashlib.sha256(), 0, math.inf
    try:
        limit = limit if entry is None else entry["bytes"]
        with _opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{path.parent}: {path.name} is not a plain file")
            while size <= limit and (piece := os.read(descriptor, _CHUNK)):
                digest.update(piece)
                size += len(piece)
                yield piece
        same = entry is None or (size == limit and digest.hexdigest() == entry["sha256"])
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path.parent}: unreadable ({error})") from error
    if not same:
        raise CheckpointError(f"{path.parent}: {path.name} is not what was saved")


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of the manifest, name -> {"bytes", "sha256"}, after a check of the manifest itself."""
    try:
        manifest = json.loads(b"".join(_pieces(folder / MANIFEST)))
        entries, version = manifest["files"], manifest["schema_version"]
        if manifest.pop("sha256") != _hash_manifest(manifest):
            raise CheckpointError(f"{folder}: {MANIFEST} was changed")
        check_schema(version, folder)
        if manifest["step"] != int(folder.name[5:]):
            raise CheckpointError(f"{folder}: it holds step {manifest['step']}")
        present = {p.name for p in folder.iterdir()} - {MANIFEST}
        if present != set(entries):
            raise CheckpointError(f"{folder}: files {sorted(present)} where the manifest lists {sorted(entries)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder}: unreadable ({error or type(error).__name__})") from error
    return entries


def _prune(parent: Path, keep: int) -> None:
    """Remove all checkpoints that are older than the `keep` newest good ones."""
    good = 0
    for folder in reversed(list_checkpoints(parent)):
        if good >= keep:  # renamed first: a kill leaves no half checkpoint under its name
            with contextlib.suppress(OSError):
                os.rename(folder, parent / f".tmp-pruned-{folder.name}")  # noqa: PTH104
            continue
        try:
            verify(folder)
            good += 1
        except (CheckpointError, SchemaError):
            continue  # it stays: the next load prints a warning
    _remove_leftovers(parent)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of killed saves and of replaced checkpoints."""
    for stale in [*parent.glob(".tmp-*"), *parent.glob("replaced-*")]:
        shutil.rmtree(stale, ignore_errors=True)


def _set_aside(folder: Path, prefix: str) -> Path:
    aside = folder.with_name(f"{prefix}-{folder.name}-{time.time_ns()}")
    os.rename(folder, aside)  # noqa: PTH104
    return aside
