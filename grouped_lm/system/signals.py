"""SIGTERM and Ctrl-C: at once where nothing is to be saved, after a save where a training runs."""

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
    """Raised between two pieces of long work that need not be finished, an evaluation for example."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, through every `finally`, with 75: run again to go on."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_PREEMPTED)

    if threading.current_thread() is not threading.main_thread():  # the only one that may set handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopSignals:
    """Turn SIGTERM and the first Ctrl-C into a flag that the loop reads after a step; a second Ctrl-C is immediate."""

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
        self, items: Iterable[Item], asked: Callable[[bool], tuple[bool, ...]] = lambda flag: (flag,)
    ) -> Iterator[Item]:
        """Yield the items, and raise `StopRequested` instead of the next one once a signal has come.

        `asked` says of the flag whether it is set in any process that has to stop along with this one.
        """
        for item in items:
            if asked(self.received is not None)[0]:
                raise StopRequested
            yield item

    def leave(self) -> NoReturn:
        """End the process, and a sweep it is part of: 130 after Ctrl-C, 75 (run again to go on) after SIGTERM."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(EXIT_PREEMPTED)
