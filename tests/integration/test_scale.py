"""Tokenizing much text: bounded memory, killed and gone on with, the same manifest. `GVC_SCALE_MB` says how much."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grouped_lm.data.sources.tinytales import generate_stories

GVC = str(Path(sys.executable).parent / "gvc")
FILES = 4
BORDER = "\n<|endoftext|>\n"


def write_stories(folder: Path, megabytes: int) -> None:
    """Write generated stories into several files, `megabytes` of 10^6 in all."""
    stories = generate_stories(megabytes * 2_000, 0, "train")
    for number in range(FILES):
        left = megabytes * 10**6 // FILES
        with (folder / f"train-{number}.txt").open("w", encoding="utf-8") as file:
            while left > 0:
                left -= file.write(next(stories) + BORDER)


def prepare(folder: Path, cache: str, kill_behind: int = 0) -> tuple[dict, float, int]:
    """Tokenize in a process of its own; return the manifest, seconds, and the peak of its memory in bytes.

    With `kill_behind`, kill it once so many bytes of ids are written.
    """
    words = ["data", "prepare", "data=text", f"data.train={folder}/train-*.txt", f"data.valid={folder}/valid.txt"]
    environment = os.environ | {"GVC_CACHE_DIR": str(folder / cache)}
    environment.pop("OMP_NUM_THREADS", None)
    started = time.monotonic()
    with (folder / f"{cache}.json").open("w") as out:
        process = subprocess.Popen([GVC, *words, "--json"], stdout=out, env=environment)
    while kill_behind and process.poll() is None:
        if any(path.stat().st_size > kill_behind for path in (folder / cache).glob(".text-train-*.tmp/tokens.bin")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == (-signal.SIGKILL if kill_behind else 0)
    manifest = {} if kill_behind else json.loads((folder / f"{cache}.json").read_text())["train"]
    return manifest, time.monotonic() - started, usage.ru_maxrss * 1024


@pytest.mark.long
def test_a_gigabyte_of_stories(tmp_path):
    megabytes = int(os.environ.get("GVC_SCALE_MB", "400"))
    write_stories(tmp_path, megabytes)
    (tmp_path / "valid.txt").write_text("One day.")
    whole, seconds, peak = prepare(tmp_path, "whole")
    ids_bytes = 2 * whole["tokens"]
    _, _, killed_peak = prepare(tmp_path, "cut", kill_behind=ids_bytes * 2 // 3)
    (journal,) = (tmp_path / "cut").glob(".text-train-*.tmp/journal.json")
    done = json.loads(journal.read_text())["done"]["tokens"]
    resumed, rest_seconds, resumed_peak = prepare(tmp_path, "cut")
    assert resumed == whole
    assert len(whole["source"]["files"]) == FILES
    assert max(peak, killed_peak, resumed_peak) < 2 * 2**30
    assert rest_seconds < seconds
    text_bytes = sum(file["bytes"] for file in whole["source"]["files"])
    print(
        f"\n{text_bytes:,} bytes in {FILES} files, {whole['tokens']:,} tokens in {seconds:.1f} s "
        f"({whole['tokens'] / seconds:,.0f} tokens/s); killed, gone on behind {done:,} tokens in {rest_seconds:.1f} s; "
        f"peak memory {peak / 2**20:.0f}, {killed_peak / 2**20:.0f}, {resumed_peak / 2**20:.0f} MiB"
    )
