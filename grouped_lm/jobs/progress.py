"""A sweep while it runs: a line per job, read from the jobs' own folders, so that it works over every launcher."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from grouped_lm.config import Config
from grouped_lm.jobs.sweep import failure_reason, job_state
from grouped_lm.runs.folder import COMPLETE, FAILED, RunFolder
from grouped_lm.system.console import one_line

POLL_SECONDS = 1.0
ENDED = (COMPLETE, FAILED)


def last_row(run_dir: Path) -> dict[str, Any]:
    """Return the last whole line of a run's metrics, empty where there is none."""
    try:
        lines = RunFolder(run_dir).metrics.read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


class SweepDisplay:
    """A live table on a terminal; elsewhere a plain line whenever a job ends.

    Args:
        find_jobs: gives the jobs known by now; a sweeper may still choose more.
        total: how many there will be.
    """

    def __init__(self, find_jobs: Callable[[], list[tuple[Config, Path]]], total: int) -> None:
        self._find_jobs, self._total = find_jobs, total
        jobs = find_jobs()
        self._console = Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._ended_before = sum(job_state(config, path) in ENDED for config, path in jobs)
        self._said: set[Path] = {path for config, path in jobs if job_state(config, path) in ENDED}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "SweepDisplay":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._console.is_terminal:
            with Live(self.table(), console=self._console, refresh_per_second=2, transient=True) as live:
                while not self._stop.wait(POLL_SECONDS):
                    live.update(self.table())
        else:
            while not self._stop.wait(POLL_SECONDS):
                self._say_ends()
        self._say_ends()

    def _say_ends(self) -> None:
        for config, path in self._find_jobs():
            state = job_state(config, path)
            if state in ENDED and path not in self._said:
                self._said.add(path)
                result = RunFolder(path).read_result() or {}
                what = one_line(result) if state == COMPLETE else failure_reason(path)
                self._console.print(f"{len(self._said)}/{self._total} {path.name}: {state}  {what}", soft_wrap=True)

    def table(self) -> Table:
        """Return the state of every job, and how long the rest may take."""
        jobs = self._find_jobs()
        states = [job_state(config, path) for config, path in jobs]
        ended = sum(state in ENDED for state in states)
        table = Table(title=f"{ended}/{self._total} jobs{self._time_left(ended)}", title_justify="left")
        for column in ("job", "state", "step", "last figures"):
            table.add_column(column)
        for (config, path), state in zip(jobs, states, strict=True):
            row = last_row(path) if state != "changed" else {}
            step = f"{row['trainer/step']}/{config.train.max_steps}" if row else "-"
            table.add_row(path.name, state, step, failure_reason(path) if state == FAILED else one_line(row))
        return table

    def _time_left(self, ended: int) -> str:
        ended_now = ended - self._ended_before
        if ended_now <= 0 or ended == self._total:
            return ""
        left = (time.monotonic() - self._started) / ended_now * (self._total - ended)
        return f", about {left / 60:.0f} minutes left" if left >= 60 else f", about {left:.0f} s left"
