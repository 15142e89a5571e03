"""Cells that survive: a damaged file, a kill in the middle, another command."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grouped_lm.bench.results import cell_key, run_cells
from grouped_lm.errors import BusyError


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


def test_a_row_is_written_when_it_is_measured(tmp_path):
    def measure():
        yield {"ms": 1.0}
        assert (tmp_path / "bench.csv").read_text().splitlines()[1:] == ["s,1,1.0"]
        yield {"ms": 2.0}

    assert len(run_cells(tmp_path, [({"n": 1}, measure)], "s", {}, {})) == 2


def test_no_cell_is_begun_after_the_limit_and_the_rest_follow_later(tmp_path, capfd):
    log, times = [], iter([0.0, 0.0, 5.0, 11.0])
    rows = run_cells(tmp_path, cells(log, [1, 2, 3, 4]), "s", {}, {}, 10, lambda: next(times))
    assert [row["n"] for row in rows] == log == [1, 2]
    assert capfd.readouterr().err.endswith("s: limit_s=10 is over, 2 cells are left; the same command continues\n")
    assert len(run_cells(tmp_path, cells(log, [1, 2, 3, 4]), "s", {}, {})) == 4
    assert log == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [b'{"rows": [{"ms"', b"[]", b"\xff\xfe\x00", b'{"a": 1}', b""])
def test_a_damaged_cell_is_measured_again(tmp_path, content):
    log = []
    run_cells(tmp_path, cells(log, [1, 2]), "s", {}, {})
    (tmp_path / "cells" / f"{cell_key('s', {'n': 1}, {})}.json").write_bytes(content)
    rows = run_cells(tmp_path, cells(log, [1, 2]), "s", {}, {})
    assert log == [1, 2, 1]
    assert [row["ms"] for row in rows] == [1.0, 2.0]


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
    files = Path("cells/cells")
    bench = subprocess.Popen([Path(sys.executable).parent / "gvc", *words], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not list(files.glob("[!.]*.json")) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.kill(bench.pid, signal.SIGKILL)
        bench.wait()
    kept = next(files.glob("[!.]*.json"))
    rows_before, stamp = json.loads(kept.read_text())["rows"], kept.stat().st_mtime_ns
    done = gvc(*words)
    assert done.code == 0, done.err
    assert kept.stat().st_mtime_ns == stamp
    rows = json.loads(done.out)
    assert all(row in rows for row in rows_before)
    assert [(row["n_tokens"], row["head"]) for row in rows] == [
        (n, head) for n in (8, 16, 24) for head in ("dense", "grouped")
    ]
