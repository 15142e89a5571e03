"""A hang is not a long night: a thread that ends the process when the loop has stood still for too long."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from grouped_lm.errors import EXIT_FAILED

Item = TypeVar("Item")
STACKS = "hang.txt"


class Watchdog:
    """Ends the process with 1 after `minutes` without a `beat`; the last checkpoint stands, the run can go on from it.

    What every thread was doing is written to `hang.txt` in the run folder. Nothing can be saved: the thread that knows
    the state is the one that hangs.

    Args:
        run_dir: where the stacks go.
        minutes: longest silence; None never ends anything.
        on_hang: called with the reason just before the end, to write it down.
        rank: of this process; all but the first write `hang-RANK.txt`.
    """

    def __init__(self, run_dir: Path, minutes: float | None, on_hang: Callable[[str], None], rank: int = 0) -> None:
        self._run_dir, self._limit_s, self._on_hang = run_dir, 60 * (minutes or 0.0), on_hang
        self._stacks = f"hang-{rank}.txt" if rank else STACKS
        self._beaten = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._limit_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def beat(self) -> None:
        """Say that something was done."""
        self._beaten = time.monotonic()

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, with a beat for each."""
        for item in items:
            self.beat()
            yield item

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit_s / 4)):
            silent = time.monotonic() - self._beaten
            if silent > self._limit_s:
                self._end(f"nothing happened for {silent:.0f} s (train.hang_minutes); stacks in {self._stacks}")

    def _end(self, reason: str) -> None:
        try:
            with (self._run_dir / self._stacks).open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            self._on_hang(reason)
            print(f"gvc: error: {self._run_dir}: {reason}; the same command goes on", file=sys.stderr, flush=True)
        finally:
            os._exit(EXIT_FAILED)
