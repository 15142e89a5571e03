"""Cells that survive: a cut line, a kill in the middle, another command."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grouped_lm.bench.results import CellStore, cell_key, run_cells
from grouped_lm.errors import BusyError, DataError


def cells(log, names):
    return [({"n": name}, lambda name=name: log.append(name) or [{"ms": float(name)}]) for name in names]


def test_a_finished_cell_is_not_measured_again(tmp_path):
    log = []
    run_cells(tmp_path, cells(log, [1, 2]), "s", {}, {"commit": "old"})
    rows = run_cells(tmp_path, cells(log, [1, 2, 3]), "s", {}, {"commit": "new"})
    assert log == [1, 2, 3]
    assert [(row["n"], row["commit"]) for row in rows] == [(1, "old"), (2, "old"), (3, "new")]
    with (tmp_path / "bench.csv").open() as file:
        assert [row["ms"] for row in csv.DictReader(file)] == ["1.0", "2.0", "3.0"]
    run_cells(tmp_path, cells(log, [1]), "s", {"threads": 2}, {})
    assert log == [1, 2, 3, 1]


def test_a_line_cut_short_is_measured_again(tmp_path):
    store, key = CellStore(tmp_path), cell_key("s", {"n": 1}, {})
    store.append(key, [{"ms": 1.0}])
    file = tmp_path / "cells.jsonl"
    file.write_bytes(file.read_bytes() + b'{"key": "half", "ro')
    assert list(store.read()) == [key]
    store.append("next", [])
    assert list(store.read()) == [key, "next"]


@pytest.mark.parametrize("content", [b'{"a": 1}\n', b"[]\n", b"\xff\xfe\x00"])
def test_a_file_that_is_not_a_benchs_stays_as_it_is(tmp_path, content):
    (tmp_path / "cells.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="holds no cells of a bench: give another --dir"):
        run_cells(tmp_path, cells([], [1]), "s", {}, {})
    assert (tmp_path / "cells.jsonl").read_bytes() == content


def test_two_benches_of_one_folder(tmp_path):
    def measure():
        with pytest.raises(BusyError, match="another gvc bench"):
            run_cells(tmp_path, [], "s", {}, {})
        return []

    run_cells(tmp_path, [({"n": 1}, measure)], "s", {}, {})


def test_a_killed_bench_keeps_what_it_has_and_goes_on(workdir, texts, gvc):
    words = ["bench", "heads", "tokenizer=bytes", "data=text", f"data.train={texts['train']}", "heads.n_embd=[8]"]
    words += [f"data.valid={texts['valid']}", "competitors=[grouped]", "meter.max_rounds=1", "heads.n_tokens=[8,16,24]"]
    words += ["meter.max_dropped=0", "--dir", "cells", "--json"]
    file = Path("cells/cells.jsonl")
    bench = subprocess.Popen([Path(sys.executable).parent / "gvc", *words], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not (file.exists() and file.read_bytes().count(b"\n")) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.kill(bench.pid, signal.SIGKILL)
        bench.wait()
    kept = file.read_text().splitlines()[0]
    done = gvc(*words)
    assert done.code == 0, done.err
    assert file.read_text().splitlines()[0] == kept
    rows = json.loads(done.out)
    assert rows[:2] == json.loads(kept)["rows"]
    assert [(row["n_tokens"], row["head"]) for row in rows] == [
        (n, head) for n in (8, 16, 24) for head in ("dense", "grouped")
    ]
