"""SIGTERM and Ctrl-C: they end a process at once, or a training after a save."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

from grouped_lm.errors import EXIT_PREEMPTED

Item = TypeVar("Item")


class StopRequested(Exception):
    """A signal came during work that need not be finished, such as a validation."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, through every `finally`, with exit code 75."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_PREEMPTED)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopSignals:
    """Store SIGTERM and the first Ctrl-C in a flag that the loop reads after each step. A second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os.write(2, b"\ngvc: stopping after a save; Ctrl-C again stops at once, without one\n")
        self.received = number

    def between(
        self, items: Iterable[Item], agree: Callable[[bool], tuple[bool, ...]] = lambda flag: (flag,)
    ) -> Iterator[Item]:
        """Yield the items until a signal comes, then raise `StopRequested`.

        Args:
            items: pieces of work.
            agree: returns whether the flag is set in any process that has to stop with this one.
        """
        for item in items:
            if agree(self.received is not None)[0]:
                raise StopRequested
            yield item

    def leave(self) -> NoReturn:
        """End the process and its sweep, with 130 after Ctrl-C, and 75 (run again to continue) after SIGTERM."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(EXIT_PREEMPTED)
