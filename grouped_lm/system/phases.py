"""Show on stderr what a command does at the moment: a line per open phase, with a bar where its length is known.

On a terminal the lines disappear when their phase ends. Elsewhere a phase is a plain line once it has lasted
`PLAIN_AFTER_S`, and another one every `PLAIN_EVERY_S`. Nothing is shown unless a command has called `show_phases`.
"""

import contextlib
import functools
import logging
import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from grouped_lm.system.tables import shorten_middle

Part = TypeVar("Part")
PLAIN_AFTER_S = 10.0
PLAIN_EVERY_S = 60.0
BESIDE = 32
"""Columns of the terminal for bar, counts and time."""
_shown = False
_open: list["Phase"] = []
_progress: Progress | None = None


def show_phases() -> None:
    """Show the phases and warnings of this process from now on. Of several processes only the first shows phases."""
    global _shown
    _shown = int(os.environ.get("RANK") or 0) == 0
    handler = SayHandler()
    handler.addFilter(lambda record: not record.name.startswith("hydra"))  # what `--info` prints goes to stdout
    logging.basicConfig(format="gvc: %(message)s", handlers=[handler])
    logging.getLogger("grouped_lm").setLevel(logging.INFO)
    logging.getLogger("hydra").setLevel(logging.NOTSET)  # a run before in this process had it say warnings alone


@contextlib.contextmanager
def phase(what: str, total: int | None = None) -> Iterator["Phase"]:
    """Say what the enclosed code does, such as "reading the text". Phases may be nested.

    Args:
        what: a few words.
        total: number of parts, for a bar and the time left. None if it is not known.
    """
    opened = Phase(what, total)
    opened.start()
    try:
        yield opened
    finally:
        opened.stop()


def track(parts: Iterable[Part], what: str, total: int | None = None) -> Iterator[Part]:
    """Yield `parts` and show how many of `total` are done."""
    with phase(what, total) as shown:
        for part in parts:
            yield part
            shown.advance()


def say(text: str) -> None:
    """Print lines on stderr, above the open phases. A terminal wraps them between words, but for a command to copy."""
    console = Console(stderr=True)
    if console.is_terminal:
        fill = functools.partial(textwrap.fill, width=console.width, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(line if line.startswith("gvc ") else fill(line) for line in text.splitlines())
    print(text, file=sys.stderr, flush=True)  # a live display has replaced sys.stderr, and shows the line above itself


class SayHandler(logging.Handler):
    """Prints log messages with `say`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        say(self.format(record))


def format_seconds(seconds: float) -> str:
    """Return a time such as `0:31` or `1:02:31`."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


class Phase:
    """One phase: `phase` opens it. Counts may come often, since they are only drawn a few times per second."""

    def __init__(self, what: str, total: float | None = None, counted: bool = True) -> None:
        self.what, self.total, self.counted, self.note = what, total, counted, ""
        self.done: float = 0
        self.started = time.monotonic()
        self._task: Any = None
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """Show the phase."""
        if not _shown:
            return
        _open.append(self)
        if sys.stderr.isatty():
            self._task = _live().add_task(self.what, total=self.total, note="", counted=self.counted)
            _live().start()
            _live().refresh()  # at least once, however short the phase is
        else:
            self._say_later(PLAIN_AFTER_S)

    @property
    def is_full(self) -> bool:
        """Whether all parts are done. A phase of unknown length is never full."""
        return self.total is not None and self.done >= self.total

    def rename(self, what: str) -> None:
        """Say something else, and keep the bar."""
        self.what = what
        if self._task is not None and _progress is not None:
            _progress.update(self._task, description=what, refresh=True)

    def advance(self, parts: float = 1) -> None:
        """Count parts that are done."""
        self.update(self.done + parts)

    def update(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Set the parts done, their number where it was not known, and a text beside the bar."""
        self.done, self.total = done, total or self.total
        self.note = self.note if note is None else note
        if self._task is not None and _progress is not None:
            _progress.update(self._task, completed=done, total=self.total, note=self.note)

    def stop(self) -> None:
        """Remove the phase. A second call does nothing."""
        global _progress
        if self not in _open:
            return
        _open.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and _progress is not None:
            _progress.remove_task(self._task)
            if not _progress.tasks:
                _progress.stop()
                _progress = None

    def describe(self) -> str:
        """Return the phase as a line of text, such as `validating: 12 of 278, about 0:31 left`."""
        seconds = time.monotonic() - self.started
        if self.total is None or not self.done:
            return f"{self.what}: {seconds:.0f} s so far"
        left = seconds / self.done * (self.total - self.done)
        share = f"{self.done:,} of {self.total:,}" if self.counted else f"{self.done / self.total:.0%}"
        return f"{self.what}: {share}, about {format_seconds(left)} left"

    def _say_later(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._say_now)
        self._timer.daemon = True
        self._timer.start()

    def _say_now(self) -> None:
        if _open[-1:] == [self]:  # of nested phases the inner one says more
            print(f"gvc: {self.describe()}", file=sys.stderr, flush=True)
        if self in _open:  # it may have ended since the timer began
            self._say_later(PLAIN_EVERY_S)


def _live() -> Progress:
    """Return the running display of this process."""
    global _progress
    if _progress is None:
        fixed = Column(no_wrap=True)
        _progress = Progress(
            SpinnerColumn(),
            _Description(table_column=fixed),
            _Bar(bar_width=None, table_column=Column(ratio=1)),
            _Count(table_column=fixed),
            TextColumn("{task.fields[note]}", table_column=fixed, markup=False),
            _Time(table_column=fixed),
            console=Console(stderr=True, highlight=False),
            expand=True,
            transient=True,
            redirect_stdout=False,  # stdout is data, also where both are one terminal
        )
    return _progress


class _Description(ProgressColumn):
    """What the phase does. The name before a colon loses its middle, so that the time left stays in sight."""

    def render(self, task: Task) -> Text:
        beside = BESIDE if task.total else BESIDE // 2
        width = max(20, Console(stderr=True).width - beside)
        name, colon, what = task.description.rpartition(": ")
        name = shorten_middle(name, max(8, width - len(colon + what)))
        return Text(shorten_middle(name + colon + what, width))


class _Bar(BarColumn):
    """The bar of a phase whose length is known."""

    def render(self, task: Task) -> RenderableType:  # type: ignore[override]
        return Text("") if task.total is None else super().render(task)


class _Count(ProgressColumn):
    """Parts done, and their number."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{task.completed:,.0f}" if task.completed else "", "green")
        counts = f"{task.completed:,.0f}/{task.total:,.0f}" if task.fields["counted"] else f"{task.percentage:.0f} %"
        return Text(counts, "green")


class _Time(ProgressColumn):
    """The time left where it is known, else the time so far."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text("")  # of nested phases the inner one is not done
        left = task.time_remaining
        return Text(format_seconds(task.elapsed or 0) if left is None else f"{format_seconds(left)} left", "cyan")
