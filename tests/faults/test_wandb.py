"""A W&B that is refused, hangs, fails or dies costs no weight, no row and no more than 5 seconds."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_tools import final_state
from run_outputs import curve

GVC = str(Path(sys.executable).parent / "gvc")
ANSWERS = {
    "500": b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n{}",
    "401": b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\n{}",
}
WAYS = ("refused", "hanging", "500", "401", "dying", "service killed")


@contextlib.contextmanager
def server(way: str) -> Iterator[int]:
    """A server on this machine that behaves in one bad way; the port of one that is not there for `refused`."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if way == "refused":
        listener.close()
    held: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                held.append(client)
                if way in ANSWERS:
                    client.recv(65536)
                    client.sendall(ANSWERS[way])
                    client.close()
                elif way == "dying":
                    client.recv(10)
                    client.close()

    threading.Thread(target=serve, daemon=True).start()
    yield port
    listener.close()
    for client in held:
        client.close()


def kill_service(parent: int) -> bool:
    """Kill W&B's own process as soon as it is there; return whether it ever was."""
    until = time.monotonic() + 30
    while time.monotonic() < until and Path(f"/proc/{parent}").exists():
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError):
                name, rest = status.read_text().split("(", 1)[1].rsplit(")", 1)
                if name.startswith("wandb-core") and int(rest.split()[1]) == parent:
                    os.kill(int(status.parent.name), signal.SIGKILL)
                    return True
        time.sleep(0.05)
    return False


def timed_run(words: list[str], run: str, way: str, port: int) -> tuple[float, str]:
    environment = os.environ | {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0123456789" * 4}
    started = time.monotonic()
    log = Path(f"{run}.log")
    with log.open("w") as file:  # no pipe: W&B's helpers hold it open after everything else is over
        process = subprocess.Popen(
            [GVC, "train", *words, f"hydra.run.dir={run}"], env=environment, stdout=file, stderr=file
        )
    if way == "service killed":
        assert kill_service(process.pid)
    process.wait(timeout=120)
    took, said = time.monotonic() - started, log.read_text()
    assert process.returncode == 0, (way, said)
    assert "Traceback" not in said, (way, said)
    return took, said


@pytest.mark.faults
def test_a_wandb_that_cannot_hurt(workdir, tiny, figure):
    words = [*tiny, "train.max_steps=60", "model.dropout=0.1"]
    plain_s = min(timed_run(words, f"plain{i}", "none", 9)[0] for i in range(2))
    added = {}
    for way in WAYS:
        mode = "offline" if way == "service killed" else "online"
        with server(way) as port:
            took, said = timed_run([*words, "tracking=wandb", f"tracking.mode={mode}"], way.split()[0], way, port)
        added[way] = took - plain_s
        assert way == "service killed" or "gvc: warning: W&B" in said, (way, said)
        assert curve(Path(way.split()[0])) == curve(Path("plain0")), way
        assert final_state(Path(way.split()[0])) == final_state(Path("plain0")), way
        assert json.loads((Path(way.split()[0]) / "result.json").read_text())["state"] == "complete"
    assert max(added.values()) < 5, added
    shown = ", ".join(f"{way} {seconds:+.1f} s" for way, seconds in added.items())
    figure("W&B that fails", f"{len(added)} of {len(added)}: same weights, no row lost; added {shown}")
