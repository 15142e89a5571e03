"""Steps run one after the other, each in processes of its own: done ones are left out, broken ones stop nobody."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grouped_lm.errors import BusyError, ConfigError, disk_errors
from grouped_lm.reproduction.command import run_command
from grouped_lm.reproduction.evidence import table_csv
from grouped_lm.reproduction.steps import Scale, Step, Text, expand, find_text, text_overrides
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.system.files import write_json, write_text

DONE, FAILED, LEFT_OUT, BEGUN, NEW = "done", "failed", "left out", "begun", "new"
BEAT_S = 10.0
"""How often a step that runs writes down for how long it has run: what a kill may lose."""


@dataclass(frozen=True, kw_only=True)
class StepState:
    """What became of a step so far."""

    state: str = NEW
    command: str = ""
    seconds: float = 0.0
    """Spent on it, attempts that were killed among them, but for their last `BEAT_S`."""
    reason: str | None = None


class Reproduction:
    """One folder, one scale, its texts: what was done in it and what is left.

    Args:
        scale: the list.
        out: the folder; made by `lock`.
        texts: given by the user; a role without one has the text that the folder was begun with.

    Raises:
        DataError: a text that the folder was begun with is gone.
    """

    def __init__(self, scale: Scale, out: Path, texts: list[Text]) -> None:
        self.scale, self.out = scale, out
        self.given = {text.role: text for text in texts}
        self.given |= remembered_texts(scale, out, set(self.given))
        self.texts = text_overrides(scale, self.given, out)
        self._children: set[subprocess.Popen[str]] = set()

    def command(self, step: Step) -> str:
        """Return what is run, in words that one can type."""
        return expand(step, self.scale.name, self.out, self.texts)

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
            ConfigError: the folder was begun with another scale, with other texts, or with texts in other roles.
            DiskError: it cannot be made.
        """
        known = self.out / "reproduce.json"
        own: dict[str, Any] = {"scale": self.scale.name, "texts": {}, "roles": {}}
        for role, text in self.given.items():
            own["texts"][text.name], own["roles"][role] = text.sha256(), text.name
        before = own | read_begun(self.out)
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
                link, place = self.out / "texts" / text.name, text.folder.resolve()
                link.unlink(missing_ok=True)
                link.symlink_to(place, target_is_directory=True)
            write_json(known, own | {key: before[key] | own[key] for key in ("texts", "roles")})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; made where there is none.

        Raises:
            BusyError: another one works in it.
            ConfigError: it is a file.
            DiskError: it cannot be made.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {self.out} is a file: give a folder, or a name that there is not yet")
        with disk_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.out / ".lock", timeout=0):
                yield
        except Timeout:
            raise BusyError(f"another gvc reproduce works in {self.out}: wait for it, or give another --out") from None

    def run(self, steps: list[Step], say: Callable[[str], None]) -> list[str]:
        """Run what is left of `steps`, and return "step: reason" of every one that failed.

        Args:
            steps: in order.
            say: told what happens, a line at a time.
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
            if before.state == DONE and not (step.always or self._runs_left(step)):
                say(f"{label}: done before, in {before.seconds / 60:.1f} minutes")
                continue
            say(f"{label}: {step.about} (about {step.minutes:g} minutes)")
            started = time.monotonic() - (0.0 if step.always else before.seconds)
            with self._beating(step, started):
                reason = self._run_step(step, say)
            seconds = time.monotonic() - started
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

    @contextlib.contextmanager
    def _beating(self, step: Step, started: float) -> Iterator[None]:
        """Write down now and then for how long a step has run, so that a kill does not lose it; and when it is left."""
        path, over = self.out / "steps" / f"{step.name}.json", threading.Event()

        def beat() -> None:
            begun = StepState(state=BEGUN, command=self.command(step), seconds=time.monotonic() - started)
            with contextlib.suppress(OSError):  # a full disk is for the step itself to say
                write_json(path, asdict(begun))

        def go_on() -> None:
            while not over.wait(BEAT_S):
                beat()

        beat()
        clock = threading.Thread(target=go_on, daemon=True)
        clock.start()
        try:
            yield
        finally:
            over.set()
            clock.join()
            beat()

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
                        "taken": found.seconds / 60 if found.seconds else None,
                        "reason": found.reason,
                        "command": self.command(step) + each,
                    }
                )
        return rows

    def _runs_left(self, step: Step, everything: bool = False) -> list[Path]:
        """Return the complete runs of an `each` step that lack what it makes, or all complete ones."""
        paths = sorted(self.out.glob(step.each)) if step.each else []
        complete = [path for path in paths if (RunFolder(path).read_result() or {}).get("state") == COMPLETE]
        return [path for path in complete if everything or not (path / str(step.makes)).exists()]

    def _run_step(self, step: Step, say: Callable[[str], None]) -> str | None:
        """Run a step's command, or one for every run that lacks what it makes, and return what went wrong."""
        log = self.out / "steps" / f"{step.name}.log"
        if step.each is None:
            return run_command(shlex.split(self.command(step)), log, say, self._children)
        ready = self._runs_left(step)
        if not ready and not self._runs_left(step, everything=True):
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


def read_begun(out: Path) -> dict[str, Any]:
    """Return what `reproduce.json` says of a folder: its scale, its texts' hashes and what they are for."""
    try:
        values = json.loads((out / "reproduce.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    kinds = {"scale": str, "texts": dict, "roles": dict}
    return {key: values[key] for key, kind in kinds.items() if isinstance(values.get(key), kind)}


def remembered_texts(scale: Scale, out: Path, given: set[str]) -> dict[str, Text]:
    """Return the texts that a folder was begun with, by what they are for, if they are not given anew.

    A folder of another scale has none.
    """
    before = read_begun(out)
    if before.get("scale") != scale.name:
        return {}
    roles = {role: name for role, name in before.get("roles", {}).items() if role not in given}
    return {role: find_text(f"{name}={out / 'texts' / name}") for role, name in roles.items()}
