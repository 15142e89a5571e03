"""Cells of a bench, kept one by one so that a killed bench continues, and written as CSV."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

import torch

from grouped_lm.bench.timing import Place
from grouped_lm.jobs.store import JobStore
from grouped_lm.system.files import write_text
from grouped_lm.system.runtime import cpu_model, git_commit, library_versions
from grouped_lm.system.tables import Row, csv_text

Cell = tuple[Row, Callable[[], Iterable[Row]]]
"""What tells a cell from the others, and the function that measures its rows."""
LAST = ("device", "dtype", "threads", "machine", "torch", "commit", "command")
"""The last columns of a suite's CSV."""
GPU_PACKAGES = ("triton", "cut-cross-entropy", "liger_kernel", "liger-kernel", "quack-kernels", "nvidia-cutlass-dsl")


def cell_key(suite: str, cell: Row, identity: Row) -> str:
    """Return a hash of everything that the figures of a cell depend on."""
    text = json.dumps([suite, cell, identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def environment_columns(command: str, place: Place) -> Row:
    """Return the columns of every row that describe the machine and the code."""
    machine = f"{cpu_model()}, {os.cpu_count()} CPUs"
    if place.device.type == "cuda":
        peers = sorted({f"{d.name} {d.version}" for d in metadata.distributions() if d.name in GPU_PACKAGES})
        gpu = torch.cuda.get_device_name(place.device)
        machine = ", ".join([gpu, f"CUDA {torch.version.cuda}", ", ".join(peers), machine])
    return {
        "device": place.device.type,
        "dtype": place.dtype,
        "threads": torch.get_num_threads(),
        "machine": machine,
        "torch": library_versions().get("torch"),
        "commit": git_commit(),
        "command": command,
    }


def run_cells(
    folder: Path,
    cells: Sequence[Cell],
    suite: str,
    identity: Row,
    environment: Row,
    limit_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Measure every cell that the folder does not hold, and return the rows of all cells.

    `bench.csv` is written after each row. `identity` is what the figures depend on besides the cell, and `environment`
    holds columns that every row gets. After `limit_s` seconds no further cell is begun.

    Raises:
        BusyError: Another process measures into this folder.
    """
    store, rows, started = JobStore(folder, "cells"), list[Row](), clock()
    with store.lock(f"another gvc bench writes into {folder}: wait for it, or give another --dir"):
        keys = [cell_key(suite, cell, identity) for cell, _ in cells]
        known = {key: record["rows"] for key in keys if (record := store.read(key)) and "rows" in record}
        if known:
            print(f"{len(known)} of {len(cells)} cells are in {folder}; remove it to measure again", file=sys.stderr)
        for number, (key, (cell, measure)) in enumerate(zip(keys, cells, strict=True), start=1):
            if key not in known:
                label = ", ".join(f"{name} {value}" for name, value in cell.items())
                print(f"{suite}, cell {number} of {len(cells)}: {label}", file=sys.stderr, flush=True)
                if limit_s is not None and clock() - started > limit_s:
                    left = sum(other not in known for other in keys)
                    print(
                        f"{suite}: limit_s={limit_s:g} is over, {left} cells are left; the same command continues",
                        file=sys.stderr,
                    )
                    break
                known[key] = []
                for row in measure():  # a cell is known when all of its rows are
                    known[key].append({"suite": suite, **cell, **row, **environment})
                    write_text(folder / "bench.csv", to_csv(rows + known[key]))
                store.write(key, {"rows": known[key]})
            rows += known[key]
            write_text(folder / "bench.csv", to_csv(rows))
    return rows


def to_csv(rows: list[Row]) -> str:
    """Return rows as CSV: columns in the order in which rows first have them, those of the environment last."""
    names = dict.fromkeys(name for row in rows for name in row)
    return csv_text(rows, [*(name for name in names if name not in LAST), *(name for name in LAST if name in names)])
