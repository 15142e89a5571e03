"""Steps run one after the other, each in processes of its own: done ones are left out, broken ones stop nobody."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grouped_lm.errors import BusyError, ConfigError, DiskError
from grouped_lm.reproduction.evidence import table_csv
from grouped_lm.reproduction.steps import Scale, Step, Text, expand, text_overrides
from grouped_lm.run_folder import COMPLETE, RunFolder
from grouped_lm.runtime import write_json, write_text

DONE, FAILED, LEFT_OUT, NEW = "done", "failed", "left out", "new"
CHILD = "grouped_lm.cli.child"
"""Runs the words of a command as `gvc` does, and ends with its parent."""


@dataclass(frozen=True, kw_only=True)
class StepState:
    """What became of a step so far."""

    state: str = NEW
    command: str = ""
    seconds: float = 0.0
    """Spent on it, attempts that were killed left out."""
    reason: str | None = None


class Reproduction:
    """One folder, one scale, its texts: what was done in it and what is left.

    Args:
        scale: the list.
        out: the folder; made by `lock`.
        texts: given by the user, the one that the claims are about first.
    """

    def __init__(self, scale: Scale, out: Path, texts: list[Text]) -> None:
        self.scale, self.out, self.given = scale, out, texts
        self.texts = text_overrides(scale, texts, out)
        self._children: set[subprocess.Popen[str]] = set()

    def command(self, step: Step) -> str:
        """Return what is run, in words that one can type."""
        return expand(step, self.out, self.texts)

    def state(self, step: Step) -> StepState:
        """Return what the folder says; a command that has changed since makes a step new again."""
        try:
            found = StepState(**json.loads((self.out / "steps" / f"{step.name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return StepState()
        return found if found.command == self.command(step) else StepState()

    def missing_text(self, step: Step) -> str | None:
        """Return which text a step lacks."""
        return next((role for role in step.needs if self.texts[role] is None), None)

    def prepare(self) -> None:
        """Put the texts in their places, as links, so that commands hold nobody's paths; the folder must be held.

        Raises:
            ConfigError: the folder was begun with another scale or other texts.
            DiskError: it cannot be made.
        """
        known = self.out / "reproduce.json"
        own: dict[str, Any] = {"scale": self.scale.name, "texts": {text.name: text.sha256() for text in self.given}}
        try:
            before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else own
        except ValueError:
            before = own
        if before["scale"] != own["scale"]:
            raise ConfigError(f"{self.out} holds a reproduction of scale {before['scale']}: give another --out")
        changed = [name for name, sha in own["texts"].items() if before["texts"].get(name, sha) != sha]
        if changed:
            raise ConfigError(f"{self.out} was begun with another text {changed[0]}: give another --out, or that text")
        with disk_errors(self.out):
            (self.out / "steps").mkdir(parents=True, exist_ok=True)
            (self.out / "texts").mkdir(exist_ok=True)
            for text in self.given:
                link = self.out / "texts" / text.name
                link.unlink(missing_ok=True)
                link.symlink_to(text.folder.resolve(), target_is_directory=True)
            write_json(known, {"scale": own["scale"], "texts": before["texts"] | own["texts"]})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; made where there is none.

        Raises:
            BusyError: another one works in it.
            DiskError: it cannot be made.
        """
        with disk_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.out / ".lock", timeout=0):
                yield
        except Timeout:
            raise BusyError(f"another gvc reproduce works in {self.out}: wait for it, or give another --out") from None

    def run(self, steps: list[Step], say: Callable[[str], None], again: bool = False) -> list[str]:
        """Run what is left of `steps`, and return "step: reason" of every one that failed.

        Args:
            steps: in order.
            say: told what happens, a line at a time.
            again: also those that are done.
        """
        failed = []
        for number, step in enumerate(steps, start=1):
            label = f"[{number}/{len(steps)}] {step.name}"
            lacking = self.missing_text(step)
            if lacking is not None:
                say(f"{label}: left out, it needs a text for {{{lacking}}}: --data DIR")
                self._record(step, StepState(state=LEFT_OUT, reason=f"no text for {lacking} was given"))
                continue
            before = self.state(step)
            if before.state == DONE and not (again or step.always or self._runs_left(step)):
                say(f"{label}: done before, in {before.seconds / 60:.1f} minutes")
                continue
            say(f"{label}: {step.about} (about {step.minutes:g} minutes)")
            started = time.monotonic()
            reason = self._run_step(step, say, again)
            seconds = (0 if again or step.always else before.seconds) + time.monotonic() - started
            self._record(step, StepState(state=FAILED if reason else DONE, seconds=seconds, reason=reason))
            if reason:
                say(f"{label}: failed: {reason}")
                failed.append(f"{step.name}: {reason}")
        return failed

    def _record(self, step: Step, state: StepState) -> None:
        """Keep what became of a step, and the list of all steps for the report."""
        with disk_errors(self.out):
            write_json(self.out / "steps" / f"{step.name}.json", asdict(replace(state, command=self.command(step))))
            write_text(self.out / "steps.csv", table_csv(self.table()))

    def table(self, everything: bool = False) -> list[dict[str, Any]]:
        """Return a row per step: what it is for, minutes planned and taken, state, command.

        Args:
            everything: also those that are run each time.
        """
        rows = []
        for step in self.scale.steps:
            if everything or not step.always:
                found = self.state(step)
                each = f"  # for each run at {step.each}" if step.each else ""
                rows.append(
                    {
                        "scale": self.scale.name,
                        "machine": self.scale.machine,
                        "step": step.name,
                        "about": step.about,
                        "minutes": step.minutes,
                        "state": found.state,
                        "taken": found.seconds / 60 if found.state == DONE else None,
                        "reason": found.reason,
                        "command": self.command(step) + each,
                    }
                )
        return rows

    def _runs_left(self, step: Step, again: bool = False) -> list[Path]:
        """Return the complete runs of an `each` step that lack what it makes."""
        paths = sorted(self.out.glob(step.each)) if step.each else []
        complete = [path for path in paths if (RunFolder(path).read_result() or {}).get("state") == COMPLETE]
        return [path for path in complete if again or not (path / str(step.makes)).exists()]

    def _run_step(self, step: Step, say: Callable[[str], None], again: bool) -> str | None:
        """Run a step's command, or one for every run that lacks what it makes, and return what went wrong."""
        log = self.out / "steps" / f"{step.name}.log"
        if step.each is None:
            return run_command(shlex.split(self.command(step)), log, say, self._children)
        ready = self._runs_left(step, again)
        if not ready and not self._runs_left(step, again=True):
            return f"there is no complete run at {step.each}"

        def one(path: Path) -> str | None:
            words = shlex.split(self.command(step).replace("{run}", shlex.quote(str(path))))
            kept = path / str(step.makes) if step.keeps_stdout else None
            reason = run_command(words, log, say, self._children, kept)
            return reason and f"{path.name}: {reason}"

        with ThreadPoolExecutor(max_workers=min(step.side_by_side, os.cpu_count() or 1)) as pool:
            try:
                reasons = [reason for reason in pool.map(one, ready) if reason]
            except BaseException:  # asked to stop: those that run now stop, the others do not begin
                pool.shutdown(wait=False, cancel_futures=True)
                for child in [*self._children]:
                    child.send_signal(signal.SIGTERM)
                raise
        return "; ".join(reasons) or None


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line.

    Raises:
        DiskError: it refused.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{folder} cannot be written ({error.strerror}): make room and run the same command again"
        ) from error


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
