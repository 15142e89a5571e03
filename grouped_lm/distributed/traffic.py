"""Bytes that a process sends over the network, as the kernel counts them."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

BYTES_SENT, BYTES_RETRANS = 200, 208
"""Offsets of two 8-byte counters in Linux's `struct tcp_info` (include/uapi/linux/tcp.h)."""


def sent_bytes() -> int | None:
    """Return the bytes that this process has sent over its open TCP connections, or None where Linux does not count.

    They include all of gloo's traffic. NCCL uses other ways too, between GPUs of one machine for example.
    """
    if not Path("/proc/self/fd").is_dir():
        return None
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError, struct.error):
            if link.readlink().name.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(link.name))) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6):
                        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RETRANS + 8)
                        sent, sent_again = struct.unpack_from("=QQ", info, BYTES_SENT)
                        total += sent - sent_again
    return total


class StepTraffic:
    """Bytes that one training step sends. They are counted in a step after the first ones, which set up connections."""

    def __init__(self, watched_step: int = 3) -> None:
        self._watched = watched_step
        self.sent: int | None = None

    @contextlib.contextmanager
    def watch(self, steps_before: int) -> Iterator[None]:
        """Enclose one optimizer step. `steps_before` is the number of steps that this process did before."""
        before = sent_bytes() if steps_before == self._watched else None
        yield
        if before is not None and (after := sent_bytes()) is not None:
            self.sent = after - before
