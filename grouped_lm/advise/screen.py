"""Short trainings that rank heads: all with the same body, seed and tokens, in run folders that can be continued.

A run of the screen is the beginning of a full run, with its learning rates. Half of the heads, at least two, go on to
the next of `SHARES` of the full run; the others are cut. Two more runs with another seed measure the noise. What a
screen finds depends on its steps alone. The clock only decides how many there are.
"""

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from grouped_lm.advise.heads import REFERENCE, variant_config
from grouped_lm.advise.verdict import Trial, decide
from grouped_lm.bench.variants import Variant
from grouped_lm.config import Config
from grouped_lm.data import Corpus
from grouped_lm.data.loader import ValidWindows
from grouped_lm.errors import ConfigError, DivergedError, MemoryShortError
from grouped_lm.plan.heads import step_tokens
from grouped_lm.runs.checkpoint import list_checkpoints
from grouped_lm.runs.folder import COMPLETE, FAILED, INTERRUPTED, RunFolder
from grouped_lm.runs.table import whole_rows
from grouped_lm.system.console import TrainDisplay
from grouped_lm.system.files import read_json_dict, write_json
from grouped_lm.train.loop import run_steps
from grouped_lm.train.session import TrainingRun
from grouped_lm.train.setup import build_model, lock_folder, set_up_process

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Of the steps of a full run: after each one the heads are compared, and half of them are cut."""
FINALISTS = 2
"""Heads that are never cut."""
VALID_TOKENS = 2**15
"""Of the validation text, in windows spread evenly over it. Its mean differs between heads by 0.003 nats by chance."""
LOSSES = "screen.json"
"""File in a run folder with its losses over those windows, by step. In metrics.jsonl `gvc train` puts losses over the
whole text beside them, and cuts off what came after its checkpoint."""
NOISE_TARGETS = 2
"""The noise is measured at so many of the first comparisons."""
PROBE_STEPS = 8
"""Steps of the first head before the clock decides what fits: the first four have no speed."""
SLACK = 1.15
"""Work takes so many times longer than its steps: validation, checkpoints, and other programs on the machine."""

Say = Callable[[str], None]


def spread_windows(tokens: np.ndarray, block_size: int, n_tokens: int = VALID_TOKENS) -> np.ndarray:
    """Return about `n_tokens` of a text, in windows of `block_size` at equal distances; a short text whole."""
    whole = (len(tokens) - 1) // block_size
    wanted = max(1, n_tokens // block_size)
    if whole <= wanted:
        return np.asarray(tokens)
    starts = np.arange(wanted) * whole // wanted * block_size
    return np.concatenate([tokens[start : start + block_size] for start in starts])


@dataclass
class Track:
    """A head with one seed: its run folder, its run while it is open, and its losses."""

    variant: Variant
    seed: int
    folder: Path
    whole_targets: int | None = None
    """Targets of the whole validation text if the screen takes it whole: then val/loss is of the same tokens."""
    run: TrainingRun | None = None
    random_states: list[torch.Tensor] = field(default_factory=list)
    problem: str | None = None
    note: str | None = None
    """Why it has no loss at the step that it was last asked for, if it was left as it is."""

    def rows(self) -> list[dict[str, float]]:
        """Return the metrics so far."""
        metrics = RunFolder(self.folder).metrics
        return list(whole_rows(metrics.read_bytes().split(b"\n"))) if metrics.exists() else []

    def losses(self) -> dict[int, float]:
        """Return the validation losses by step, all over the same tokens."""
        found, whole = dict[int, float](), self.whole_targets
        if whole is not None:
            of_all = (row for row in self.rows() if "val/loss" in row and row.get("val/tokens", whole) == whole)
            found = {int(row["trainer/step"]): row["val/loss"] for row in of_all}
        return found | {int(step): loss for step, loss in (read_json_dict(self.folder / LOSSES) or {}).items()}

    def keep_loss(self, step: int, loss: float) -> None:
        """Keep the validation loss at a step."""
        losses = self.losses() | {step: loss}
        write_json(self.folder / LOSSES, {str(key): losses[key] for key in sorted(losses)})

    def left_alone(self, until: int) -> str | None:
        """Return why the run must not be opened to be trained to a step, None if it may be."""
        folder = RunFolder(self.folder)
        if self.run is not None:
            return None
        if (folder.read_result() or {}).get("state") == COMPLETE:
            return f"its run is complete, and has no loss of the screen at step {until:,}"
        checkpoints = list_checkpoints(folder.checkpoints)
        step = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
        return f"its run is at step {step:,}, beyond {until:,}" if step > until else None

    def speeds(self) -> list[float]:
        """Return the tokens per second of all measured stretches."""
        return [rate for row in self.rows() if (rate := row.get("throughput/tokens_per_sec"))]


class Screen:
    """The tracks of a screen, in `folder`. Enter it as a context: the end closes all runs. Their state is saved."""

    def __init__(self, config: Config, corpus: Corpus, variants: Sequence[Variant], folder: Path, say: Say) -> None:
        steps = config.train.max_steps
        quiet = replace(
            config.train, devices=1, nodes=1, eval_every_steps=None, checkpoint_every_steps=steps, log_every_steps=25
        )
        self.config, self.corpus, self.variants = replace(config, train=quiet), corpus, list(variants)
        self.folder, self.say, self.steps = folder, say, steps
        self.windows = spread_windows(corpus.valid.tokens(), config.model.block_size)
        self.whole_targets = len(self.windows) - 1 if len(self.windows) == corpus.valid.num_tokens else None
        self.tracks: dict[tuple[str, int], Track] = {}
        self.last_step = steps
        """Where the bars end."""
        self.compared = 0
        """The last step at which all heads that were not cut before have a loss."""
        self._contexts = contextlib.ExitStack()

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *exception: object) -> None:
        for track in self.tracks.values():
            folder = RunFolder(track.folder)
            ended = (folder.read_result() or {}).get("state") in (COMPLETE, FAILED)
            if track.run is not None and not ended:
                write_json(folder.result, {"state": INTERRUPTED, "trainer/step": track.run.progress.step})
        self._contexts.close()

    def track(self, variant: Variant, seed: int) -> Track:
        """Return the track of a head with a seed, counted from the config's."""
        key = variant.name, seed
        if key not in self.tracks:
            folder = self.folder / f"{variant.name}-seed{self.config.seed + seed}"
            self.tracks[key] = Track(variant, seed, folder, self.whole_targets)
        return self.tracks[key]

    def trials(self) -> list[Trial]:
        """Return what is known of every head, in the order of the variants."""
        found = []
        for variant in self.variants:
            own = {track.seed: track for track in self.tracks.values() if track.variant is variant}
            speeds = [rate for track in own.values() for rate in track.speeds()]
            found.append(
                Trial(
                    name=variant.name,
                    losses={seed: track.losses() for seed, track in own.items()},
                    tokens_per_sec=statistics.median(speeds) if speeds else None,
                    problem=next((track.problem for track in own.values() if track.problem), None),
                    note=own[0].note if 0 in own else None,
                )
            )
        return found

    def train(self, variant: Variant, seed: int, until: int) -> None:
        """Train a head to a step, validate there, and save. A head that is there already costs nothing.

        A run that is complete, or is beyond the step, is left as it is.
        """
        track = self.track(variant, seed)
        if track.problem or until in track.losses():
            return
        if (why := track.left_alone(until)) is not None:
            track.note = why
            self.say(f"{variant.name} is left out at step {until:,}: {why}")
            return
        try:
            run = track.run or self._open(track)
            with self._own_random_states(track), run:
                run_steps(run, until)
                speed, _ = run.meters.stop(until)  # the clock must not run on while others train
                if run.progress.step == until and until not in track.losses():
                    run.metrics_log.append({"trainer/step": until, **speed})
                    track.keep_loss(until, run.validate()["val/loss"])
                run.save()
        except (DivergedError, MemoryShortError) as error:
            track.problem = str(error)
            self.say(f"{variant.name} is out: {error}")

    def _open(self, track: Track) -> TrainingRun:
        config = variant_config(self.config, track.variant, self.config.seed + track.seed)
        folder, process_group = self._contexts.enter_context(lock_folder(config, track.folder))
        config, device, predicted = set_up_process(config, folder, process_group)
        model = build_model(config, self.corpus, folder)
        run = TrainingRun(config, folder, process_group, self.corpus, model, device, predicted)
        valid, batch = self.corpus.valid, config.train.eval_batch_size or config.train.micro_batch_size
        part = {
            "target_tokens": len(self.windows) - 1,
            "bytes": valid.text_bytes * len(self.windows) // valid.num_tokens,
        }
        run.valid = run.valid_on_the_way = replace(valid, manifest=valid.manifest | part)
        run.windows = run.windows_on_the_way = ValidWindows(self.windows, config.model.block_size, batch)
        title = f"seed {config.seed} {track.variant.name}" if track.seed else track.variant.name
        run.display = TrainDisplay(title, self.last_step, run.progress.step)
        track.run = run
        return run

    @contextlib.contextmanager
    def _own_random_states(self, track: Track) -> Iterator[None]:
        """Give a run the states of torch's generators that it left, as if no other run were beside it."""
        cuda = torch.cuda.is_available()
        if track.random_states:
            torch.set_rng_state(track.random_states[0])
            if cuda:
                torch.cuda.set_rng_state(track.random_states[1])
        yield
        track.random_states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if cuda else [])]


class Clock:
    """The time that a screen has, and what its work costs by the speeds so far."""

    def __init__(self, screen: Screen, deadline: float | None) -> None:
        self.screen, self.deadline = screen, deadline

    def seconds(self, variants: Sequence[Variant], seed: int, until: int) -> float:
        """Return the seconds until all have made `until` steps, 0 before any speed is known.

        The slowest known speed stands for one that is not known.
        """
        speeds = {trial.name: trial.tokens_per_sec for trial in self.screen.trials()}
        slowest = min((speed for speed in speeds.values() if speed), default=0.0)
        tokens = 0.0
        for variant in variants:
            track = self.screen.track(variant, seed)
            steps = until - max(track.losses(), default=0)
            if steps > 0 and track.left_alone(until) is None:  # a forward pass is a third of a step
                own = steps * step_tokens(self.screen.config) + len(self.screen.windows) / 3
                speed = speeds[variant.name]
                tokens += own * slowest / speed if speed else own
        return SLACK * tokens / slowest if slowest else 0.0

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    def fits(self, variants: Sequence[Variant], seed: int, until: int, share: float = 1.0) -> bool:
        """Return whether the work fits into a share of the time that is left."""
        return self.deadline is None or self.seconds(variants, seed, until) <= share * self.left

    def last_step(self, variants: Sequence[Variant], until: int) -> int:
        """Return the last step up to `until` that all can make with the first seed in the time that is left."""
        if self.fits(variants, 0, until):
            return until
        losses = [step for variant in variants for step in self.screen.track(variant, 0).losses()]
        done = max((step for step in losses if step <= until), default=0)
        return done + int((until - done) * max(0.0, self.left) / self.seconds(variants, 0, until))


def run_screen(screen: Screen, deadline: float | None, steps: int) -> None:
    """Train heads to each of `SHARES` of a full run, at most `steps`, as far as the time allows, and cut half of them.

    `deadline` is a reading of `time.monotonic`; None means no limit.

    Raises:
        ConfigError: not even the first comparison fits into the time.
    """
    clock, going = Clock(screen, deadline), list(screen.variants)
    screen.last_step = min(steps, screen.steps)
    targets = sorted({min(steps, max(PROBE_STEPS, round(share * screen.steps))) for share in SHARES})
    if deadline is not None:
        screen.train(going[0], 0, min(PROBE_STEPS, targets[0]))
    for index, target in enumerate(targets):
        if not index and not clock.fits(going, 0, target):
            raise ConfigError(
                f"--minutes is too short: {len(going)} heads need about "
                f"{math.ceil((clock.seconds(going, 0, target) - clock.left) / 60)} more to make {target:,} steps here; "
                "name fewer --heads, or take a smaller model"
            )
        until = clock.last_step(going, target)
        if until < target and until - targets[index - 1] < (target - targets[index - 1]) / 4:
            break  # too little news for its cost
        for variant in going:
            screen.train(variant, 0, until)
        screen.compared, going = until, survivors(screen.trials(), going, until)
        screen.say(f"after {until:,} of {screen.steps:,} steps: {', '.join(variant.name for variant in going)} lead")
        known = targets[: min(index + 1, NOISE_TARGETS)]
        if len(going) == FINALISTS and clock.fits(going, 1, known[-1], share=0.5):
            for variant, step in itertools.product(going, known):
                screen.train(variant, 1, step)
        if until < target or not going:
            break
    train_reference(screen, clock)


def train_reference(screen: Screen, clock: Clock) -> None:
    """Train the reference to the last step of the head that is first, as far as the time allows."""
    verdict = decide(screen.trials(), screen.compared)
    reference = next(variant for variant in screen.variants if variant.name == REFERENCE)
    if verdict is not None:
        first = next(trial for trial in screen.trials() if trial.name == verdict.head)
        for step in sorted((step for step in first.losses[0] if step <= screen.compared), reverse=True):
            if clock.fits([reference], 0, step):
                screen.train(reference, 0, step)
                break


def survivors(trials: Sequence[Trial], going: Sequence[Variant], step: int) -> list[Variant]:
    """Return the better half of the heads by their loss at a step, at least `FINALISTS`, best first."""
    losses = {trial.name: trial.losses[0][step] for trial in trials if step in trial.losses.get(0, {})}
    ranked = sorted((v for v in going if v.name in losses), key=lambda v: losses[v.name])
    return ranked[: max(FINALISTS, math.ceil(len(ranked) / 2))]
