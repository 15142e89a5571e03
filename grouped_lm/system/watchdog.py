"""End a process that hangs."""

import faulthandler
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from grouped_lm.errors import EXIT_FAILED

STACKS = "hang.txt"


class Watchdog:
    """End the process with exit code 1 after `minutes` without a `beat`. The run can continue from its last checkpoint.

    The stacks of all threads are written to `hang.txt` in the run folder. Nothing can be saved, because the thread that
    knows the state is the one that hangs. (faulthandler.dump_traceback_later alone could not write result.json.)
    The time in which the whole process is suspended does not count.

    Args:
        run_dir: folder for the stacks.
        minutes: longest time without a beat. None never ends the process.
        on_hang: the first process calls it with the reason just before the end.
        rank: of this process. All but the first one write `hang-RANK.txt`.
    """

    def __init__(self, run_dir: Path, minutes: float | None, on_hang: Callable[[str], None], rank: int = 0) -> None:
        self._run_dir, self._limit_s, self._on_hang = run_dir, 60 * (minutes or 0.0), on_hang
        self._rank, self._stacks = rank, f"hang-{rank}.txt" if rank else STACKS
        self._last_beat = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._done = threading.Event()
        if self._limit_s:
            threading.Thread(target=self._watch, args=(self._done,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()

    def beat(self) -> None:
        """Report progress."""
        self._last_beat = time.monotonic()

    def _watch(self, done: threading.Event) -> None:
        pause_s, asked = min(1.0, self._limit_s / 4), time.monotonic()
        while not done.wait(pause_s):
            now, before = time.monotonic(), asked
            asked = now
            if now - before > pause_s + self._limit_s / 4:  # this thread was stopped too, so the process was suspended
                self.beat()
                continue
            silent_s = now - self._last_beat
            if silent_s > self._limit_s:
                self._end(f"nothing happened for {silent_s:.0f} s (train.hang_minutes); stacks in {self._stacks}")

    def _end(self, reason: str) -> None:
        try:
            with (self._run_dir / self._stacks).open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            if not self._rank:
                self._on_hang(reason)
            command = f"gvc resume {shlex.quote(str(self._run_dir))}"
            print(f"gvc: error: {self._run_dir}: {reason}; to continue: {command}", file=sys.stderr, flush=True)
        finally:
            os._exit(EXIT_FAILED)
