"""What a process sends over the network, as the kernel counts it."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

BYTES_SENT, BYTES_RETRANS = 200, 208
"""Where Linux keeps two counters in `struct tcp_info` (include/uapi/linux/tcp.h), 8 bytes each."""


def sent_bytes() -> int | None:
    """Return the bytes that this process has sent over TCP connections that are open, None where nobody counts.

    Gloo's traffic is all there, on one machine too; NCCL's is not where GPUs reach each other by other ways.
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
                        sent, again = struct.unpack_from("=QQ", info, BYTES_SENT)
                        total += sent - again
    return total


class StepTraffic:
    """Bytes that one step of the loop sends, counted on a step after everything is set up."""

    def __init__(self, watched_step: int = 3) -> None:
        self._watched = watched_step
        self.sent: int | None = None

    @contextlib.contextmanager
    def watch(self, steps_before: int) -> Iterator[None]:
        """Enclose one whole optimizer step; `steps_before` counts those of this process."""
        before = sent_bytes() if steps_before == self._watched else None
        yield
        if before is not None and (after := sent_bytes()) is not None:
            self.sent = after - before
