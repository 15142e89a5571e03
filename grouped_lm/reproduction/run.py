"""Run the steps of a reproduction in order, each in processes of its own. Finished steps are skipped."""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from grouped_lm.errors import ConfigError, disk_errors
from grouped_lm.jobs.store import JobStore
from grouped_lm.reproduction.steps import ROLES, Scale, Step, Text, cpu_dtype, expand, text_in
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.system.files import read_json_dict, write_json, write_text
from grouped_lm.system.tables import csv_text

DONE, FAILED, SKIPPED, STARTED, NEW = "done", "failed", "left out", "begun", "new"
RECORD_SECONDS = 10.0
"""How often a running step records its time. A kill loses at most this much."""
CHILD = "grouped_lm.cli.child"
"""The module that runs a command as `gvc` does, and ends when its parent ends."""


@dataclass(frozen=True, kw_only=True)
class StepState:
    """How far a step is."""

    state: str = NEW
    command: str = ""
    seconds: float = 0.0
    """Time spent, killed attempts included, except for their last `RECORD_SECONDS`."""
    reason: str | None = None


class Reproduction:
    """One folder with the steps of one scale and their states.

    Args:
        scale: the list of steps.
        out: the folder; `lock` makes it.
        texts: texts that the user gave. Other roles keep the text that the folder was started with.

    Raises:
        DataError: a text that the folder was started with is gone.
    """

    def __init__(self, scale: Scale, out: Path, texts: list[Text]) -> None:
        self.scale, self.out = scale, out
        self.given = {text.role: text for text in texts}
        before = read_started(out)
        for role, name in before.get("roles", {}).items() if before.get("scale") == scale.name else ():
            if role not in self.given:
                folder = out / "texts" / name
                self.given[role] = text_in(folder, name, f"{name}={folder}")
        own = {role: text.overrides(out / "texts") for role, text in self.given.items()}
        self.cpu_dtype: str = before.get("cpu_dtype") or cpu_dtype()
        self.texts = {role: own.get(role, scale.texts.get(role)) for role in ROLES}
        self._store = JobStore(out, "steps")
        self._children: set[Popen[str]] = set()

    def command(self, step: Step) -> str:
        """Return the command of a step, as a user can type it."""
        return expand(step, self.scale.name, self.out, self.texts | {"cpu_dtype": self.cpu_dtype})

    def state(self, step: Step) -> StepState:
        """Return the recorded state of a step; a step whose command has changed is new."""
        recorded = self._recorded(step)
        return recorded if recorded.command == self.command(step) else StepState()

    def _recorded(self, step: Step) -> StepState:
        """Return the recorded state of a step, which can be that of another command."""
        try:
            return StepState(**self._store.read(step.name) or {})
        except TypeError:
            return StepState()

    def missing_text(self, step: Step) -> str | None:
        """Return the role of a text that a step needs and does not have."""
        return next((role for role in step.needs if self.texts[role] is None), None)

    def prepare(self) -> None:
        """Link the texts into the folder, so that commands contain no path of the user. Needs `lock`.

        Raises:
            ConfigError: the folder was started with another scale or other texts.
            DiskError: the folder cannot be written.
        """
        own: dict[str, Any] = {"scale": self.scale.name, "roles": {role: t.name for role, t in self.given.items()}}
        own["cpu_dtype"] = self.cpu_dtype
        own["texts"] = {text.name: text.sha256() for text in self.given.values()}
        before = own | read_started(self.out)
        if before["scale"] != own["scale"]:
            raise ConfigError(f"{self.out} holds a reproduction of scale {before['scale']}: give another --out")
        for role, name in own["roles"].items():
            if before["roles"].get(role, name) != name:
                raise ConfigError(
                    f"{self.out} was begun with the text {before['roles'][role]}, not {name}: give another --out"
                )
            sha = own["texts"][name]
            if before["texts"].get(name, sha) != sha:
                raise ConfigError(f"{self.out} was begun with another text {name}: give another --out, or that text")
        with disk_errors(self.out):
            (self.out / "steps").mkdir(parents=True, exist_ok=True)
            (self.out / "texts").mkdir(exist_ok=True)
            for text in self.given.values():
                target, link = text.folder.resolve(), self.out / "texts" / text.name
                link.unlink(missing_ok=True)
                link.symlink_to(target, target_is_directory=True)
            merged = {key: before[key] | own[key] for key in ("texts", "roles")}
            write_json(self.out / "reproduce.json", own | merged)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and hold it for this process.

        Raises:
            BusyError: another process works in it.
            ConfigError: it is a file.
            DiskError: it cannot be made.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {self.out} is a file: give a folder, or a name that there is not yet")
        if wrong := sorted(set(",()[]{}'\"$\\") & set(str(self.out))):
            raise ConfigError(f"--out {self.out} has {' '.join(wrong)}, which no override can hold: give another name")
        busy = f"another gvc reproduce works in {self.out}: wait for it, or give another --out"
        with contextlib.ExitStack() as stack:
            with disk_errors(self.out):
                stack.enter_context(self._store.lock(busy))
            yield

    def run(self, steps: list[Step], say: Callable[[str], None]) -> list[str]:
        """Run the unfinished ones of `steps`, and return "step: reason" for each that failed.

        Args:
            steps: in order.
            say: shows one line.
        """
        failed = []
        for number, step in enumerate(steps, start=1):
            label = f"[{number}/{len(steps)}] {step.name}"
            role = self.missing_text(step)
            if role is not None:
                say(f"{label}: left out, it needs a text for {{{role}}}: --data DIR")
                self._record(step, StepState(state=SKIPPED, reason=f"no text for {role} was given"))
                continue
            before = self.state(step)
            if before.state == DONE and not (step.always or self._runs_left(step)):
                say(f"{label}: done before, in {before.seconds / 60:.1f} minutes")
                continue
            self._forget_results(step)
            say(f"{label}: {step.about} (about {step.minutes:g} minutes)")
            started = time.monotonic() - (0.0 if step.always else before.seconds)
            with self._recording_time(step, started):
                reason = self._run_step(step, say)
            seconds = time.monotonic() - started
            self._record(step, StepState(state=FAILED if reason else DONE, seconds=seconds, reason=reason))
            if reason:
                say(f"{label}: failed: {reason}")
                failed.append(f"{step.name}: {reason}")
        return failed

    def _record(self, step: Step, state: StepState) -> None:
        """Write the state of a step, and the list of all steps for the report."""
        with disk_errors(self.out):
            self._store.write(step.name, asdict(replace(state, command=self.command(step))))
            write_text(self.out / "steps.csv", csv_text(self.table()))

    @contextlib.contextmanager
    def _recording_time(self, step: Step, started: float) -> Iterator[None]:
        """Write the time of a running step at the start, at intervals and at the end."""
        over = threading.Event()

        def record() -> None:
            state = StepState(state=STARTED, command=self.command(step), seconds=time.monotonic() - started)
            with contextlib.suppress(OSError):  # a full disk: the step itself reports it
                self._store.write(step.name, asdict(state))

        def record_until_over() -> None:
            while not over.wait(RECORD_SECONDS):
                record()

        record()
        clock = threading.Thread(target=record_until_over, daemon=True)
        clock.start()
        try:
            yield
        finally:
            over.set()
            clock.join()
            record()

    def table(self, everything: bool = False) -> list[dict[str, Any]]:
        """Return one row per step: purpose, minutes planned and taken, state, command.

        Args:
            everything: include the steps that run every time.
        """
        rows = []
        for step in self.scale.steps:
            if everything or not step.always:
                recorded = self.state(step)
                row: dict[str, Any] = {"scale": self.scale.name, "machine": self.scale.machine, "step": step.name}
                row |= {"about": step.about, "minutes": step.minutes, "state": recorded.state}
                row |= {"taken": recorded.seconds / 60 if recorded.seconds else None, "reason": recorded.reason}
                each = f"  # for each run at {step.each}" if step.each else ""
                rows.append(row | {"command": self.command(step) + each})
        return rows

    def _runs_left(self, step: Step, everything: bool = False) -> list[Path]:
        """Return the complete runs of an `each` step without its result, or all complete runs."""
        paths = sorted(self.out.glob(step.each)) if step.each else []
        complete = [path for path in paths if (RunFolder(path).read_result() or {}).get("state") == COMPLETE]
        return [path for path in complete if everything or not (path / str(step.makes)).exists()]

    def _forget_results(self, step: Step) -> None:
        """Remove what an `each` step has made with another command than that of today."""
        if self._recorded(step).command not in ("", self.command(step)):
            with disk_errors(self.out):
                for path in self._runs_left(step, everything=True):
                    (path / str(step.makes)).unlink(missing_ok=True)

    def _run_step(self, step: Step, say: Callable[[str], None]) -> str | None:
        """Run the command of a step, for `each` steps once per run that needs it; return the reason of a failure."""
        log = self._store.path(step.name, "log")
        if step.each is None:
            return self._run_command(shlex.split(self.command(step)), log, say)
        ready = self._runs_left(step)
        if not ready and not self._runs_left(step, everything=True):
            return f"there is no complete run at {step.each}"

        def one(path: Path) -> str | None:
            words = shlex.split(self.command(step).replace("{run}", shlex.quote(str(path))))
            result = path / str(step.makes) if step.keeps_stdout else None
            reason = self._run_command(words, log, say, result)
            return reason and f"{path.name}: {reason}"

        with ThreadPoolExecutor(max_workers=min(step.side_by_side, os.cpu_count() or 1)) as pool:
            try:
                reasons = [reason for reason in pool.map(one, ready) if reason]
            except BaseException:  # asked to stop: running commands stop, the others do not start
                pool.shutdown(wait=False, cancel_futures=True)
                for child in [*self._children]:
                    child.send_signal(signal.SIGTERM)
                raise
        return "; ".join(reasons) or None

    def _run_command(
        self, words: list[str], log: Path, say: Callable[[str], None], kept: Path | None = None
    ) -> str | None:
        """Run `gvc ...` in a process that ends with this one; return None, or the last line of a command that failed.

        Args:
            words: the command, `gvc` first.
            log: file to which all output is appended.
            say: gets what the command prints on stderr, line by line.
            kept: file for what the command prints on stdout, written only if the command succeeds.

        Raises:
            KeyboardInterrupt, SystemExit: this process was asked to stop; the child has stopped.
        """
        command = [sys.executable, "-m", CHILD, str(os.getpid()), *words[1:]]
        with disk_errors(log.parent), log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(words)}\n")
            file.flush()
            child = Popen(
                command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, text=True, errors="replace", start_new_session=True
            )
            self._children.add(child)
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
                self._children.discard(child)
            file.writelines(out)
            if code == 0 and kept is not None:
                write_text(kept, "".join(out))
        if code == 0:
            return None
        if code < 0:
            return f"it was killed by signal {-code} ({signal.Signals(-code).name})"
        return last.removeprefix("gvc: error: ") or f"it ended with {code} and said nothing"


def read_started(out: Path) -> dict[str, Any]:
    """Return what `reproduce.json` says of a folder: scale, hashes of the texts, their roles, dtype of products."""
    values = read_json_dict(out / "reproduce.json") or {}
    kinds = {"scale": str, "texts": dict, "roles": dict, "cpu_dtype": str}
    return {key: values[key] for key, kind in kinds.items() if isinstance(values.get(key), kind)}
