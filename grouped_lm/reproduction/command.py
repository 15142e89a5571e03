"""One `gvc` command in a process of its own, which ends with this one: its log, its lines as they come, its error."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from grouped_lm.errors import disk_errors
from grouped_lm.system.files import write_text

CHILD = "grouped_lm.cli.child"
"""Runs the words of a command as `gvc` does, and ends with its parent."""


def run_command(
    words: list[str],
    log: Path,
    say: Callable[[str], None],
    children: set[subprocess.Popen[str]],
    kept: Path | None = None,
) -> str | None:
    """Run `gvc ...` in a process that ends with this one; None, or the last line of what it said where it failed.

    Args:
        words: the command, `gvc` first.
        log: takes everything that it says, behind what stands there.
        say: is told its lines on stderr.
        children: holds the process while it runs.
        kept: takes what it prints on stdout, whole or not at all.

    Raises:
        KeyboardInterrupt, SystemExit: this process was asked to stop; the child has stopped.
    """
    command = [sys.executable, "-m", CHILD, str(os.getpid()), *words[1:]]
    with disk_errors(log.parent), log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(words)}\n")
        file.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        children.add(child)
        out: list[str] = []
        reader = threading.Thread(target=lambda: out.extend(child.stdout or []))
        reader.start()
        last = ""
        try:
            for line in child.stderr or []:
                file.write(line)
                if line.strip():
                    last = line.strip()
                    say(f"    {last}")
            code = child.wait()
        except BaseException:
            child.send_signal(signal.SIGTERM)
            child.wait()
            raise
        finally:
            reader.join()
            children.discard(child)
        file.writelines(out)
        if code == 0 and kept is not None:
            write_text(kept, "".join(out))
    if code == 0:
        return None
    if code < 0:
        return f"it was killed by signal {-code} ({signal.Signals(-code).name})"
    return last.removeprefix("gvc: error: ") or f"it ended with {code} and said nothing"
