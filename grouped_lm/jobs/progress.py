"""The progress of a sweep, one line per job, read from the folders of the jobs, so that every launcher has it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from grouped_lm.config import Config
from grouped_lm.jobs.sweep import failure_reason, job_state
from grouped_lm.runs.folder import COMPLETE, FAILED, RunFolder
from grouped_lm.runs.table import last_metrics
from grouped_lm.system.console import one_line
from grouped_lm.system.tables import Table, columns, shorten_middle

POLL_SECONDS = 1.0
ENDED = (COMPLETE, FAILED)
NAME_SHARE = 3
"""A job's name takes at most one third of the terminal."""


class SweepDisplay:
    """A live table on a terminal; elsewhere one line for each job that ends.

    Args:
        find_jobs: returns the jobs known so far; a search may still add some.
        total: how many jobs there will be.
    """

    def __init__(self, find_jobs: Callable[[], list[tuple[Config, Path]]], total: int) -> None:
        self._find_jobs, self._total = find_jobs, total
        self._console = Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._reported = {path for config, path in find_jobs() if job_state(config, path) in ENDED}
        self._ended_before = len(self._reported)
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
                self._report_ended()
        self._report_ended()

    def _report_ended(self) -> None:
        """Print a line for each job that ended since the last call."""
        for config, path in self._find_jobs():
            state = job_state(config, path)
            if state in ENDED and path not in self._reported:
                self._reported.add(path)
                result = RunFolder(path).read_result() or {}
                text = one_line(result) if state == COMPLETE else failure_reason(path)
                self._console.print(f"{len(self._reported)}/{self._total} {path.name}: {state}  {text}", soft_wrap=True)

    def table(self) -> RichTable:
        """Return the state of every job, with the estimated time left."""
        rows = []
        for config, path in self._find_jobs():
            state = job_state(config, path)
            metrics = last_metrics(path) if state != "changed" else {}
            row = {"job": shorten_middle(path.name, self._console.width // NAME_SHARE), "state": state}
            if "trainer/step" in metrics:
                row["step"] = f"{metrics['trainer/step']}/{config.train.max_steps}"
            rows.append(row | {"last figures": failure_reason(path) if state == FAILED else one_line(metrics)})
        ended = sum(row["state"] in ENDED for row in rows)
        title = f"{ended}/{self._total} jobs{self._time_left(ended)}"
        return Table(columns=columns("job; state; step; last figures"), rows=rows, title=title).terminal()

    def _time_left(self, ended: int) -> str:
        ended_now = ended - self._ended_before
        if ended_now <= 0 or ended == self._total:
            return ""
        left = (time.monotonic() - self._started) / ended_now * (self._total - ended)
        return f", about {left / 60:.0f} minutes left" if left >= 60 else f", about {left:.0f} s left"
