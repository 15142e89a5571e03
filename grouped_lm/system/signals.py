"""SIGTERM and Ctrl-C: they end a process at once, or a training after a save."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from grouped_lm.errors import EXIT_PREEMPTED

Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def signal_handlers(numbers: tuple[signal.Signals, ...], handler: Handler | None = None) -> Iterator[None]:
    """Set a handler, if one is given, and restore the earlier ones at the end. Only the main thread may do this."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {n: signal.signal(n, handler) if handler else signal.getsignal(n) for n in numbers}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def exit_on_sigterm() -> contextlib.AbstractContextManager[None]:
    """Let SIGTERM end the process as Ctrl-C does, through every `finally`, with exit code 75."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_PREEMPTED)

    return signal_handlers((signal.SIGTERM,), leave)


class StopSignals:
    """Store SIGTERM and the first Ctrl-C in a flag that the loop reads after each step. A second one ends at once."""

    received: int | None = None

    def catch(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which signals are stored."""
        return signal_handlers((signal.SIGTERM, signal.SIGINT), self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os.write(2, b"\ngvc: stopping after a save; Ctrl-C again stops at once, without one\n")
        self.received = number

    def leave(self) -> NoReturn:
        """End the process and its sweep, with 130 after Ctrl-C, and 75 (run again to continue) after SIGTERM."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(EXIT_PREEMPTED)
