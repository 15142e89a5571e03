"""Save and resume a training run: checkpoints in the run folder, and a mirror of them."""

import sys
import time
from dataclasses import fields
from typing import Any

from grouped_lm.config import Config
from grouped_lm.data import Corpus
from grouped_lm.distributed.process_group import ProcessGroup
from grouped_lm.errors import CheckpointError, DiskError, DivergedError, DriftError
from grouped_lm.optim.training_step import TrainingStep
from grouped_lm.runs.checkpoint import list_checkpoints, load_latest, write_checkpoint
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.identity import changed_fields, config_hash, config_identity
from grouped_lm.runs.load import PRIOR
from grouped_lm.runs.tracking import MetricsLog
from grouped_lm.runs.train_state import finite_weights, pack, unpack
from grouped_lm.train.prior import PriorTraining
from grouped_lm.train.progress import History, Progress

METRICS_COPY = "metrics.jsonl"
"""File with the metrics so far in a mirrored checkpoint, for the case that the run folder is lost."""
MICRO_BATCH = ("micro_batch_size", "grad_accum_steps")
"""Settings of `train` that `train.micro_batch_size=auto` chooses when a run begins."""
SAME_BITS = ("commit", "python", "libraries", "cpu", "threads", "device", "gpu", "processes")
"""Parts of the environment that decide the last bits of a result."""


def describe_origin(config: Config, corpus: Corpus, environment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the part of `state.json` that tells which run a checkpoint belongs to."""
    chosen = {key: getattr(config.train, key) for key in MICRO_BATCH}
    return {
        **({"micro_batch": chosen} if config.train.auto_micro_batch else {}),
        "identity": {
            "config": config_hash(config),
            "train_tokens": corpus.train.manifest["sha256"],
            "valid_tokens": corpus.valid.manifest["sha256"],
        },
        "config": config_identity(config),
        "environment": {key: environment[key] for key in SAME_BITS if key in environment},
    }


def may_continue_mirror(config: Config, restarts: int) -> bool:
    """Return whether a run without a checkpoint may continue from its mirror.

    With train.resume=never it may after a restart only: before, the copies are those of an earlier run.
    """
    return config.train.mirror is not None and (config.train.resume == "auto" or restarts > 0)


class Checkpoints:
    """The checkpoints of one run. The first process reads and writes them.

    A resumed run cuts the metrics in `log` back to the length at its checkpoint. `origin` is from `describe_origin`.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        training_step: TrainingStep,
        log: MetricsLog,
        origin: dict[str, dict[str, Any]],
        process_group: ProcessGroup,
        prior: PriorTraining | None = None,
    ) -> None:
        self.prior = prior
        self.folder, self.config, self.scaler = folder, config, training_step.scaler
        self.model, self.optimizer = training_step.model.model, training_step.optimizer
        self.log, self.origin, self.process_group = log, origin, process_group
        self.mirror = folder.mirror(config, origin["identity"])
        self.commits: list[str | None] = [origin["environment"].get("commit")]
        """Commits of the code that made the steps so far, the last one now. None where git knows none."""
        self.saved_step: int | None = None
        self.saved_at = time.monotonic()

    def resume(self) -> tuple[Progress, History]:
        """Load the last checkpoint of the run folder or of the mirror, if there is one, and return its counters.

        With train.resume=never the mirror counts after a restart only: its checkpoints are those of an earlier run.

        Raises:
            DriftError: the checkpoint belongs to another config or other tokens.
            CheckpointError: there are checkpoints, and none can be trusted.
        """
        files: dict[str, bytes] = {}
        step = self.process_group.on_first(self._find, files)
        if step is None:
            self.process_group.seed_generator(self.config.seed, 0)
            return Progress(), History()
        path, commit = self.folder.path, self.commits[-1]
        try:
            state = unpack(files, self.model, self.optimizer, self._refuse_drift, self.process_group, self.config.seed)
            counters = {"overflow_steps": 0} | state["progress"]  # 0.2.0 had no float16
            history = History(**{f.name: counters.pop(f.name) for f in fields(History) if f.name != "started"})
            progress = Progress(**counters)
            self.scaler.load_state_dict(state.get("loss_scale", {}))
            if self.prior is not None:
                self.prior.unpack(self.process_group.on_first(files.get, PRIOR))
            self.process_group.on_first(self.log.cut, state["metrics_bytes"])
            self.commits = [*(earlier for earlier in state["commits"] if earlier != commit), commit]
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint of step {step} in {path} lacks or adds {error}") from error
        self.saved_step = progress.step or None
        return progress, history

    def roll_back(self) -> Progress:
        """Return to the last checkpoint after a step that was not finite. Without one, raise a DivergedError."""
        if not self.process_group.on_first(lambda: len(list_checkpoints(self.folder.checkpoints))):
            raise DivergedError(
                "diverged before the first checkpoint: there is nothing to go back to; a lower optim.lr?"
            )
        self.optimizer.state.clear()
        return self.resume()[0]

    def is_overdue(self) -> bool:
        """Return whether the last save is `train.checkpoint_every_minutes` ago."""
        return time.monotonic() - self.saved_at > 60 * self.config.train.checkpoint_every_minutes

    def save(self, progress: Progress, history: History) -> None:
        """Write a checkpoint of this step, and a copy to the mirror. A step that is saved already is left out.

        Raises:
            DivergedError: a weight is not finite.
            DiskError: the disk is full or cannot be written.
        """
        step = progress.step
        if self.saved_step == step:
            return
        started = time.monotonic()
        if self.process_group.any(not finite_weights(self.model))[0]:
            raise DivergedError(f"diverged at step {step}: weights are not finite numbers; nothing was saved")
        counters = {"progress": vars(progress) | history.saved(), "metrics_bytes": self.log.size()}
        state = self.origin | counters | {"commits": self.commits, "loss_scale": self.scaler.state_dict()}
        files = pack(self.model, self.optimizer, state, self.process_group)
        if self.prior is not None:
            files[PRIOR] = self.prior.pack()
        self.process_group.on_first(self._write, step, files)
        self.saved_at, self.saved_step = time.monotonic(), step
        history.checkpoint_seconds += self.saved_at - started

    def _write(self, step: int, files: dict[str, bytes]) -> None:
        """Write a checkpoint and its mirror. A mirror that cannot be written is a warning."""
        keep = self.config.train.keep_checkpoints
        write_checkpoint(self.folder.checkpoints, step, files, keep)
        if self.mirror is not None:
            try:
                write_checkpoint(self.mirror, step, files | {METRICS_COPY: self.log.read()}, keep)
            except DiskError as error:
                print(f"gvc: warning: no copy: {error}", file=sys.stderr)

    def _find(self, files: dict[str, bytes]) -> int | None:
        """Put the newest good checkpoint of the run folder, or else of the mirror, into `files`. Return its step."""
        newest, damaged = None, None
        try:
            newest = load_latest(self.folder.checkpoints)
        except CheckpointError as error:
            damaged = error
        may_continue = may_continue_mirror(self.config, self.process_group.restarts)
        if newest is None and self.mirror is not None and may_continue:
            newest = load_latest(self.mirror, quarantine=False)  # another process may be writing there
            if newest is not None:
                print(
                    f"gvc: warning: no checkpoint in {self.folder.path}, continuing from {self.mirror}", file=sys.stderr
                )
        if newest is None and damaged is not None:
            raise damaged
        if newest is None:
            self.log.cut(0)
            return None
        step, saved = newest
        files.update(saved)
        if METRICS_COPY in files:
            self.log.restore(files.pop(METRICS_COPY))
        return step

    def _refuse_drift(self, state: dict[str, Any]) -> None:
        """Raise a DriftError for the checkpoint of another run, and warn of another machine or other code."""
        path, saved, own = self.folder.path, state["identity"], self.origin["identity"]
        changed = [key for key in own if saved[key] != own[key]]
        names = self.folder.changed_settings(state["config"], self.config) if changed else ""
        if changed == ["config"] and not names and state["config"] != self.origin["config"]:
            changed = []  # the same text has another path now
        if changed:
            raise DriftError(
                f"the checkpoint in {path} was made with another {', '.join(changed)}{f' ({names})' if names else ''}: "
                "restore what it was made with, or give another hydra.run.dir"
            )
        if machine := changed_fields(state["environment"], self.origin["environment"]):
            warning = f"{path} continues on another machine or with other code; the bits may differ ({machine})"
            print(f"gvc: warning: {warning}", file=sys.stderr)
