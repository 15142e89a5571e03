"""Checkpoints as folders that are whole or absent; bytes in, bytes out, no torch and no pickle.

`checkpoints/step-00000100/` holds the given files and a `manifest.json` with their sizes and sha256. It is written
to the side, flushed, renamed and read back; only then are older ones pruned. A damaged one is renamed `corrupt-*`,
said, and the one before it is used.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

from grouped_lm.errors import CheckpointError, DiskError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def step_folder(parent: Path, step: int) -> Path:
    """Return the folder of a step."""
    return parent / f"step-{step:08d}"


def list_checkpoints(parent: Path) -> list[Path]:
    """Return the folders that claim to be checkpoints, oldest first."""
    return sorted(p for p in parent.glob("step-*") if p.is_dir() and p.name[5:].isdigit())


def read_verified(folder: Path) -> dict[str, bytes]:
    """Return every file of a checkpoint by name, each equal to its manifest.

    Raises:
        CheckpointError: anything missing, added, of another size or with another sha256.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        entries, version = manifest["files"], manifest["schema_version"]
        own_hash = manifest.pop("sha256")
        if own_hash != _hash_manifest(manifest):
            raise CheckpointError(f"{folder}: {MANIFEST} was changed")
        if version != SCHEMA_VERSION:
            raise CheckpointError(f"{folder}: schema version {version}, this gvc reads {SCHEMA_VERSION}")
        present = {p.name for p in folder.iterdir()} - {MANIFEST}
        if present != set(entries):
            raise CheckpointError(f"{folder}: files {sorted(present)} where the manifest lists {sorted(entries)}")
        files = {name: (folder / name).read_bytes() for name in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: unreadable ({error})") from error
    for name, data in files.items():
        if len(data) != entries[name]["bytes"] or hashlib.sha256(data).hexdigest() != entries[name]["sha256"]:
            raise CheckpointError(f"{folder}: {name} is not what was saved")
    return files


def _hash_manifest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def write_checkpoint(parent: Path, step: int, files: dict[str, bytes], keep: int) -> Path:
    """Write the files of `step` so that a kill at any moment leaves the old checkpoints or these as well.

    Args:
        parent: folder of all checkpoints of a run.
        step: optimizer steps done.
        files: contents by name.
        keep: newest checkpoints to keep, >= 2.

    Raises:
        DiskError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    target = step_folder(parent, step)
    temporary = parent / f".tmp-{target.name}-{os.getpid()}"
    manifest: dict = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
    }
    manifest["sha256"] = _hash_manifest(manifest)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for stale in parent.glob(".tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
        for name, data in files.items():
            _write_flushed(temporary / name, data)
        _write_flushed(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        _fsync_folder(temporary)
        if target.exists():  # the same step again, after a resume: what stands there was superseded or damaged
            _set_aside(target, "replaced")
        temporary.rename(target)
        _fsync_folder(parent)
        read_verified(target)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(f"checkpoint of step {step} could not be written to {parent}: {error}") from error
    for replaced in parent.glob("replaced-*"):
        shutil.rmtree(replaced, ignore_errors=True)
    for old in list_checkpoints(parent)[: -max(2, keep)]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _set_aside(folder: Path, prefix: str) -> Path:
    aside = folder.with_name(f"{prefix}-{folder.name}-{time.time_ns()}")
    return folder.rename(aside)


def load_latest(parent: Path) -> tuple[int, dict[str, bytes]] | None:
    """Return (step, files) of the newest checkpoint that verifies, None where there never was one.

    Raises:
        CheckpointError: there were checkpoints, and none of them can be trusted.
    """
    found = list_checkpoints(parent)
    for folder in reversed(found):
        try:
            return int(folder.name[5:]), read_verified(folder)
        except CheckpointError as error:
            aside = _set_aside(folder, "corrupt")
            print(f"gvc: warning: {error}; kept as {aside.name}, trying the one before", file=sys.stderr)
    if found:
        raise CheckpointError(f"no usable checkpoint in {parent}: all {len(found)} are damaged")
    return None
