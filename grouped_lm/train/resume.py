"""Going on with a run: what its loop had counted, and what brings it all back."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grouped_lm.config import Config
from grouped_lm.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from grouped_lm.errors import CheckpointError, DiskError, DivergedError, DriftError
from grouped_lm.runs.checkpoint import list_checkpoints, load_latest, write_checkpoint
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.identity import changed_fields, known_hashes, only_identity
from grouped_lm.runs.tracking import MetricsLog
from grouped_lm.runs.train_state import STATE, unpack

METRICS_COPY = "metrics.jsonl"
"""The record so far, beside a mirrored checkpoint: where a mirror is needed, the run folder is gone."""


@dataclass
class Progress:
    """What the loop counts, saved with every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    loss_sums: dict[str, float] = field(default_factory=dict)
    """Losses since the last logged row, added up over `loss_steps` steps."""
    loss_steps: int = 0
    seconds: float = 0.0
    """Time spent before this process took over."""
    checkpoint_seconds: float = 0.0
    """Of these, spent on checkpoints."""
    eval_due: bool = False
    """Whether the validation that belongs to this step is still to be done."""
    nonfinite: int = 0
    """Steps whose loss or gradient was no finite number."""
    skipped_steps: int = 0
    """Steps' worth of text left out when going back: they are not read again."""
    row: dict[str, Any] = field(default_factory=dict)
    """The last logged row, but for its speed: that is the median so far of the last process that measured any."""

    def add(self, losses: dict[str, float]) -> None:
        """Add the mean losses of one step to the sums that the next row divides."""
        for key, value in losses.items():
            self.loss_sums[key] = self.loss_sums.get(key, 0.0) + value
        self.loss_steps += 1

    def mean_losses(self) -> dict[str, float]:
        """Return the mean losses since the last row, and start anew."""
        means = {key: total / self.loss_steps for key, total in self.loss_sums.items()}
        self.loss_sums, self.loss_steps = {}, 0
        return means | {"train/perplexity": math.exp(min(means["train/loss"], 700.0))}


@dataclass
class RunState:
    """What is saved together and restored together."""

    folder: RunFolder
    config: Config
    model: nn.Module
    optimizer: torch.optim.Optimizer
    log: MetricsLog
    saved_with: dict[str, dict[str, Any]]
    """What a checkpoint says of the run that it belongs to: hashes of config and tokens, config, machine and code."""
    process_group: ProcessGroup = SINGLE_PROCESS
    """The processes that train; the first one reads and writes."""
    commits: list[str | None] = field(default_factory=list)
    """Of the code that made the steps so far, this process's last; None where that is not known."""

    @property
    def mirrors(self) -> list[Path]:
        """Where copies of the run's checkpoints are, or may be; see `RunFolder.mirrors`."""
        return self.folder.mirrors(self.config, self.saved_with["identity"])

    def resume(self) -> Progress:
        """Load the last checkpoint, here or in the mirror, if there is one, and cut the metrics back to it.

        Raises:
            DriftError: the checkpoint belongs to another config or other tokens.
            CheckpointError: there are checkpoints, and none can be trusted.
        """
        path, files = self.folder.path, dict[str, bytes]()
        commit = self.saved_with["environment"].get("commit")

        def find() -> int | None:
            found = find_checkpoint(self.folder, self.mirrors, self._is_same_run)
            if found is None:
                self.log.cut(0)
                return None
            files.update(found[1])
            if METRICS_COPY in files:
                self.log.restore(files.pop(METRICS_COPY))
            return found[0]

        def accept(state: dict[str, Any]) -> None:
            refuse_drift(state, self.saved_with, self.config, path)

        step = self.process_group.on_first(find)
        if step is None:
            self.process_group.seed_generator(self.config.seed, 0)
            self.commits = [commit]
            return Progress()
        try:
            state = unpack(files, self.model, self.optimizer, accept, self.process_group, self.config.seed)
            progress = Progress(**state["progress"])
            self.process_group.on_first(self.log.cut, state["metrics_bytes"])
            before = state.get("commits") or self.commits or [self.folder.read_environment().get("commit")]
            self.commits = [*(earlier for earlier in before if earlier != commit), commit]
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint of step {step} in {path} lacks or adds {error}") from error
        return progress

    def _is_same_run(self, files: dict[str, bytes]) -> bool:
        try:
            before = json.loads(files[STATE])["identity"]
            return not other_parts(before, self.saved_with["identity"], self.config)
        except (KeyError, ValueError, TypeError, RecursionError):
            return False

    def go_back(self) -> Progress:
        """Return to the last checkpoint after a bad step.

        Raises:
            DivergedError: there is none yet.
        """
        if not self.process_group.on_first(lambda: len(list_checkpoints(self.folder.checkpoints))):
            raise DivergedError(
                "diverged before the first checkpoint: there is nothing to go back to; a lower optim.lr?"
            )
        self.optimizer.state.clear()
        return self.resume()


def find_checkpoint(
    folder: RunFolder, mirrors: list[Path], is_same_run: Callable[[dict[str, bytes]], bool]
) -> tuple[int, dict[str, bytes]] | None:
    """Return the newest good checkpoint of the run folder; where that has none, of a mirror that is this run's.

    Raises:
        CheckpointError: there are checkpoints, and none can be trusted.
    """
    try:
        found = load_latest(folder.checkpoints)
    except CheckpointError:
        found = find_copy(folder, mirrors, is_same_run)
        if found is None:
            raise
        return found
    return found or find_copy(folder, mirrors, is_same_run)


def find_copy(
    folder: RunFolder, mirrors: list[Path], is_same_run: Callable[[dict[str, bytes]], bool]
) -> tuple[int, dict[str, bytes]] | None:
    """Return the newest good checkpoint of the first mirror that has this run's, and say so; None without one.

    Raises:
        CheckpointError: a mirror has checkpoints, and none can be trusted.
    """
    for mirror in mirrors:
        found = load_latest(mirror, quarantine=False)  # another run may be writing there
        if found is not None and is_same_run(found[1]):
            print(f"gvc: warning: no checkpoint in {folder.path}, going on from {mirror}", file=sys.stderr)
            return found
        if found is not None:
            print(f"gvc: warning: {mirror} has the checkpoints of another run, they are not used", file=sys.stderr)
    return None


def other_parts(before: dict[str, str], identity: dict[str, str], config: Config) -> list[str]:
    """Return what differs between a saved identity and that of `config`: of config, train_tokens, valid_tokens."""
    if before["config"] in known_hashes(config):
        before = before | {"config": identity["config"]}
    return [key for key in identity if before[key] != identity[key]]


def refuse_drift(state: dict[str, Any], saved_with: dict[str, dict[str, Any]], config: Config, path: Path) -> None:
    """Refuse a checkpoint of another run, field by field, and say where machine or code differ: same run, other bits.

    Raises:
        DriftError: another config or other tokens.
    """
    mend = "restore what it was made with, or give another hydra.run.dir"
    changed = other_parts(state["identity"], saved_with["identity"], config)
    fields = changed_fields(only_identity(state.get("config", saved_with["config"])), saved_with["config"])
    if changed:
        named = ", ".join(changed) + (f" ({fields})" if fields else "")
        raise DriftError(f"the checkpoint in {path} was made with another {named}: {mend}")
    here = saved_with["environment"]
    there = {"commit": here.get("commit")} | state.get("environment", here)  # older checkpoints do not know theirs
    machine = changed_fields(there, here)
    if machine:
        print(
            f"gvc: warning: {path} goes on elsewhere, or with other code; the bits may differ ({machine})",
            file=sys.stderr,
        )


def mirror_checkpoint(mirrors: list[Path], step: int, files: dict[str, bytes], log: MetricsLog, keep: int) -> None:
    """Write a copy, with the metrics so far, to the first mirror, if any; that this fails is said and ends nothing."""
    if not mirrors:
        return
    try:
        write_checkpoint(mirrors[0], step, files | {METRICS_COPY: log.read()}, keep)
    except DiskError as error:
        print(f"gvc: warning: no copy: {error}", file=sys.stderr)
