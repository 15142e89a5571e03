"""Where cells go: appended one by one, so that a killed bench keeps what it has; then CSV for people and programs."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from grouped_lm.bench.place import Place
from grouped_lm.errors import BusyError, DataError
from grouped_lm.system.files import write_text
from grouped_lm.system.runtime import cpu_model, git_commit, library_versions
from grouped_lm.system.tables import Row, csv_text

LAST = ("device", "dtype", "threads", "machine", "torch", "commit", "command")
"""The last columns of a suite's CSV."""
GPU_PACKAGES = ("triton", "cut-cross-entropy", "liger_kernel", "liger-kernel")


class CellStore:
    """Finished cells of one folder, a line of JSON each.

    A cell is a group of rows that were measured together. Its line is written with one call and synced: after a kill
    the last line may be cut short, and is then ignored and measured again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._file = folder, folder / "cells.jsonl"

    def read(self) -> dict[str, list[Row]]:
        """Return the rows of every whole line by the cell's key.

        Raises:
            DataError: the file is not a bench's.
        """
        cells: dict[str, list[Row]] = {}
        try:
            for line in self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []:
                with contextlib.suppress(json.JSONDecodeError):  # cut short
                    cell = json.loads(line)
                    cells[cell["key"]] = cell["rows"]
        except (UnicodeDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{self._file} holds no cells of a bench: give another --dir") from error
        return cells

    def append(self, key: str, rows: list[Row]) -> None:
        """Add a finished cell."""
        self.folder.mkdir(parents=True, exist_ok=True)
        cut = self._file.exists() and self._file.stat().st_size > 0 and not self._file.read_bytes().endswith(b"\n")
        with self._file.open("ab") as file:
            file.write((b"\n" if cut else b"") + json.dumps({"key": key, "rows": rows}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def cell_key(suite: str, cell: Row, identity: Row) -> str:
    """Return a hash of what decides a cell's figures."""
    text = json.dumps([suite, cell, identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def describe_peers() -> str:
    """Return the versions of what a GPU's rows come from besides torch."""
    found = {d.name: d.version for d in metadata.distributions() if d.name in GPU_PACKAGES}
    return ", ".join(f"{name} {found[name]}" for name in sorted(found))


def environment_columns(command: str, place: Place) -> Row:
    """Return what every row says about where it comes from."""
    versions, on_gpu = library_versions(), place.device.type == "cuda"
    gpu = (
        f"{torch.cuda.get_device_name(place.device)}, CUDA {torch.version.cuda}, {describe_peers()}, " if on_gpu else ""
    )
    return {
        "device": place.device.type,
        "dtype": place.dtype,
        "threads": torch.get_num_threads(),
        "machine": f"{gpu}{cpu_model()}, {os.cpu_count()} CPUs",
        "torch": versions.get("torch"),
        "commit": git_commit(),
        "command": command,
    }


def run_cells(
    folder: Path, cells: Iterable[tuple[Row, Callable[[], list[Row]]]], suite: str, identity: Row, environment: Row
) -> list[Row]:
    """Measure every cell that the folder does not hold yet, and return the rows of all.

    `bench.csv` is written anew after each cell.

    Raises:
        BusyError: another process measures into this folder.
        DataError: it holds cells that are not a bench's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"another gvc bench writes into {folder}: wait for it, or give another --dir") from None
    try:
        return _run_cells(CellStore(folder), list(cells), suite, identity, environment)
    finally:
        lock.release()


def _run_cells(
    store: CellStore, cells: list[tuple[Row, Callable[[], list[Row]]]], suite: str, identity: Row, environment: Row
) -> list[Row]:
    known, rows = store.read(), []
    reused = sum(cell_key(suite, cell, identity) in known for cell, _ in cells)
    if reused:
        print(f"{reused} of {len(cells)} cells stand in {store.folder}; remove it to measure anew", file=sys.stderr)
    for number, (cell, measure) in enumerate(cells, start=1):
        key = cell_key(suite, cell, identity)
        if key not in known:
            label = ", ".join(f"{name} {value}" for name, value in cell.items())
            print(f"{suite}, cell {number} of {len(cells)}: {label}", file=sys.stderr, flush=True)
            known[key] = [{"suite": suite, **cell, **row, **environment} for row in measure()]
            store.append(key, known[key])
        rows += known[key]
        write_text(store.folder / "bench.csv", to_csv(rows))
    return rows


def to_csv(rows: list[Row]) -> str:
    """Return rows as CSV: columns in the order in which rows first have them, those of the environment last."""
    names = dict.fromkeys(name for row in rows for name in row)
    return csv_text(rows, [*(name for name in names if name not in LAST), *(name for name in LAST if name in names)])
