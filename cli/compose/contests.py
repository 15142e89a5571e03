"""The presets `equal-tokens` and `equal-time` of `gvc sweep`: sweeps whose later jobs follow from earlier ones.

A contest is a sequence of sweeps in one folder. Each chooses something with the first seed (the learning rate, or the
body), and repeats the choice with the other seeds. The choice is by the validation text of the runs, in bits per byte.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, Override
from omegaconf import OmegaConf

from grouped_lm.config import Config, check_choice, check_range
from grouped_lm.errors import ConfigError
from grouped_lm.jobs.sweep import SweepLimits, driver_ledger, job_state
from grouped_lm.report.contest import note_jobs
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.identity import config_hash
from grouped_lm.system.runtime import describe_environment, resolve_device

from .compose import HydraFlags, composing, config_groups, parse, quoted
from .explain import explained
from .sweep_plan import SweepPlan, drive, folder_name, plan_sweep

SCORE, SPEED = "val/bits_per_byte", "throughput/tokens_per_sec"
SWEPT = {"tokens": ("variant", "model", "optim.lr", "seed"), "time": ("variant", "model", "seed")}
"""The keys that a contest of each kind sweeps."""
SETTINGS = {"tokens": (), "time": ("budgets", "speed_steps", "bodies")}
"""The keys of `contest` beside `kind`."""
TIMED = ("train.threads", "train.max_steps", "train.eval_every_steps")
"""Keys that a contest at equal time sets for each budget."""
PATHS = ("data.train", "data.valid", "tokenizer.file")
"""Keys whose values are paths. A row of the leaderboard has the names of the files alone."""
PATH = re.compile(r"[^][,']*/[^][,']+")
"""A path with a folder, alone or in a list; quotes stay outside."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A time on some CPU cores."""

    minutes: float
    threads: int

    @classmethod
    def of(cls, text: str) -> "Budget":
        """Return the budget that a text such as 10x1 names."""
        minutes, _, threads = str(text).partition("x")
        try:
            budget = cls(float(minutes), int(threads))
        except ValueError:
            raise ConfigError(f"contest.budgets must be MINUTESxCORES such as 10x1, got {text}") from None
        check_range("contest.budgets: minutes", budget.minutes, 0, 1e6, open_low=True)
        check_range("contest.budgets: cores", budget.threads, 1, 4096)
        return budget

    @property
    def label(self) -> str:
        """Part of the folder names of its jobs."""
        return f"minutes={self.minutes:g},threads={self.threads},"


@dataclass(frozen=True, slots=True)
class Stage:
    """One sweep of a contest, and the swept values of each of its jobs."""

    plan: SweepPlan
    values: list[dict[str, str]]
    notes: dict[str, dict[str, dict[str, Any]]]
    """What each job belongs to, by the name of its folder and the hash of its config."""

    def scores(self) -> list[float | None]:
        """Return the bits per byte of each job on its validation text, None where it is not complete."""
        return [_result(config, path).get(SCORE) for config, path in self.plan.jobs]


class Contest:
    """The stages of a contest. `settings` are those of the preset's key `contest`."""

    def __init__(self, name: str, overrides: list[str], flags: HydraFlags, settings: dict[str, Any]) -> None:
        """Read what the preset sweeps, and what `overrides` give in its place.

        Raises:
            ConfigError: a setting of the contest is wrong, or another key is swept.
        """
        check_settings(settings)
        self.name, self.flags, self.settings = name, flags, settings
        with explained([f"sweep={name}", *overrides], flags), composing(flags) as compose_with:
            base = compose_with([f"sweep={name}"], return_hydra_config=True)
            params = parse([f"{key}={value}" for key, value in (base.hydra.sweeper.get("params") or {}).items()])
            given = parse(overrides)
            keys = [override.key_or_group for override in params]
            needed = SWEPT[settings["kind"]]
            if lacking := [key for key in needed if key not in keys]:
                raise ConfigError(
                    f"sweep={name} lacks {', '.join(lacking)} in hydra.sweeper.params: such a contest sweeps "
                    f"{', '.join(needed)}"
                )
            self.values = {o.key_or_group: _values(o) for o in (*params, *given) if o.key_or_group in keys}
            others = [override for override in given if override.key_or_group not in keys]
            for override in others:
                self._check_setting(override, keys)
            self.others = [override.input_line or "" for override in others]
            if any(override.key_or_group == "hydra.sweep.dir" for override in others):  # one folder for all stages
                words = [f"sweep={name}", *self.others]
                folder = compose_with(words, return_hydra_config=True).hydra.sweep.dir
                self.others.append(f"hydra.sweep.dir={quoted(folder)}")

    def _check_setting(self, override: Override, swept: list[str]) -> None:
        """Raise `ConfigError` for several values of a key that is not swept, and for what the contest sets itself."""
        key, word = override.key_or_group, override.input_line
        if key in TIMED and self.settings["kind"] == "time":
            raise ConfigError(f"{word}: {self.name} chooses {key} itself, for each of contest.budgets: leave it out")
        if key == "hydra.sweep.subdir":
            raise ConfigError(f"{word}: a contest names the folders of its jobs itself: leave it out")
        if override.is_sweep_override():
            raise ConfigError(
                f"{word}: a contest sweeps {', '.join(swept)} alone. Give one value, and another "
                "hydra.sweep.dir for the next value"
            )

    def stages(self) -> Iterator[Stage]:
        """Yield the sweeps in turn. A choice among jobs of which none is complete is left out."""
        return self._time_stages() if self.settings["kind"] == "time" else self._token_stages()

    def _stage(self, chosen: dict[str, list[str]], words: Sequence[str] = (), label: str = "", **notes: Any) -> Stage:
        """Plan one sweep."""
        values = self.values | chosen
        names = f'hydra.sweep.subdir="{label}{folder_name(sorted(values))}"'
        swept = [f"{key}={','.join(own)}" for key, own in values.items()]
        plan = plan_sweep(self.name, [*swept, *self.others, *words, names], self.flags)
        jobs = [dict(zip(values, own, strict=True)) for own in itertools.product(*values.values())]
        hidden = ("hydra.", "contest.budgets=", "data.cache_dir=")
        shown = [without_folders(word) for word in self.others if not word.startswith(hidden)]
        if "minutes" in notes:
            shown.append(f"contest.budgets=[{notes['minutes']:g}x{notes['threads']}]")
        notes_by_job = {}
        for (config, path), own in zip(plan.jobs, jobs, strict=True):
            command = ["gvc sweep", self.name, *(f"{key}={value}" for key, value in own.items()), *shown]
            note = {"contest": self.name, "command": " ".join(command), **notes}
            notes_by_job[path.name] = {config_hash(config): note}
        return Stage(plan, jobs, notes_by_job)

    def _token_stages(self) -> Iterator[Stage]:
        first, *others = self.values["seed"]
        stage = self._stage({"seed": [first]})
        yield stage
        best: dict[tuple[str, str], tuple[float, str]] = {}
        for own, score in zip(stage.values, stage.scores(), strict=True):
            place = own["model"], own["variant"]
            if score is not None and (place not in best or score < best[place][0]):
                best[place] = score, own["optim.lr"]
        alike = defaultdict(list)
        for (model, variant), (_, lr) in best.items():
            alike[model, lr].append(variant)
        for (model, lr), variants in alike.items() if others else ():
            yield self._stage({"variant": variants, "model": [model], "optim.lr": [lr], "seed": others})

    def _time_stages(self) -> Iterator[Stage]:
        budgets = sorted(map(Budget.of, self.settings["budgets"]), key=lambda budget: (budget.threads, budget.minutes))
        winners: dict[tuple[str, int], str] = {}
        for budget, variant in itertools.product(budgets, self.values["variant"]):
            models, place = self.values["model"], (variant, budget.threads)
            if place in winners:
                models = models[models.index(winners[place]) :][: self.settings["bodies"]]
            yield from self._bodies(variant, models, budget, winners)

    def _bodies(
        self, variant: str, models: list[str], budget: Budget, winners: dict[tuple[str, int], str]
    ) -> Iterator[Stage]:
        """Run each body with the first seed and the best one with the others; put it into `winners`."""
        first, *others = self.values["seed"]
        scores, timed = {}, {}
        for model in models:
            own = {"variant": [variant], "model": [model], "seed": [first]}
            steps = yield from self._steps(own, budget)
            if steps is None:
                continue
            words = [f"train.threads={budget.threads}", f"train.max_steps={steps}"]
            words.append(f"train.eval_every_steps={max(1, steps // 10)}")
            timed[model] = own, words
            stage = self._stage(own, words, budget.label, minutes=budget.minutes, threads=budget.threads)
            yield stage
            if (score := stage.scores()[0]) is not None:
                scores[model] = score
        if not scores:
            return
        winner = winners[variant, budget.threads] = min(scores, key=lambda model: scores[model])
        own, words = timed[winner]
        if others:
            notes = {"minutes": budget.minutes, "threads": budget.threads}
            yield self._stage(own | {"seed": others}, words, budget.label, **notes)

    def _steps(self, own: dict[str, list[str]], budget: Budget) -> Generator[Stage, None, int | None]:
        """Yield the run that measures the speed; return the steps that the budget allows, None if it is not known."""
        words = [f"train.threads={budget.threads}", f"train.max_steps={self.settings['speed_steps']}"]
        words.append("train.eval_every_steps=null")
        stage = self._stage(own, words, f"speed,threads={budget.threads},", measures_speed=True)
        yield stage
        ((config, path),) = stage.plan.jobs
        if not (result := _result(config, path)):
            return None
        _check_machine(config, path)
        if (speed := result.get(SPEED)) is None:
            raise ConfigError(f"{path} has too few steps to measure its speed: raise contest.speed_steps")
        batch = config.train.micro_batch_size * config.train.grad_accum_steps * config.model.block_size
        return max(1, math.floor(speed * 60 * budget.minutes / batch))


def contest_of(name: str, overrides: list[str], flags: HydraFlags) -> Contest | None:
    """Return the contest that a preset describes in its key `contest`; None for a preset without one."""
    with explained([f"sweep={name}", *overrides], flags), composing(flags) as compose_with:
        if name not in config_groups(flags.config_dir)["sweep"]:
            return None  # `plan_sweep` says so
        words = [o.input_line or "" for o in parse(overrides) if o.key_or_group.startswith("contest.")]
        settings = compose_with([f"sweep={name}", *words]).get("contest")
    return Contest(name, overrides, flags, OmegaConf.to_container(settings)) if settings else None  # type: ignore[arg-type]


def run_contest(contest: Contest, max_jobs: int | None, fail_fast: bool, only_failed: bool) -> list[SweepPlan]:
    """Run the stages in turn, and return their plans. `max_jobs` and `fail_fast` are for all stages together."""
    plans = []
    stages = contest.stages()
    first = next(stages)
    with driver_ledger(first.plan.folder) as ledger:
        limits = SweepLimits(ledger, max_jobs=max_jobs, fail_fast=fail_fast, only_failed=only_failed)
        for stage in itertools.chain([first], stages):
            plans.append(stage.plan)
            note_jobs(stage.plan.folder, stage.notes)
            drive(stage.plan, contest.flags, limits)
    return plans


def _result(config: Config, path: Path) -> dict[str, Any]:
    """Return the result of a job; empty where it is not complete, or the folder holds another job."""
    return (RunFolder(path).read_result() or {}) if job_state(config, path) == COMPLETE else {}


def check_settings(settings: dict[str, Any]) -> None:
    """Raise `ConfigError` for a wrong value of the key `contest`."""
    kind = str(settings.get("kind"))
    check_choice("contest.kind", kind, tuple(SWEPT))
    if lacking := [f"contest.{key}" for key in SETTINGS[kind] if key not in settings]:
        raise ConfigError(f"contest.kind={kind} needs {', '.join(lacking)}, and this preset lacks them")
    if kind == "tokens":
        return
    budgets = settings["budgets"]
    if not isinstance(budgets, list) or not budgets:
        raise ConfigError(f"contest.budgets must be a list such as [10x1,60x1], got {budgets}")
    for budget in budgets:
        Budget.of(budget)
    for key in ("speed_steps", "bodies"):
        if not isinstance(settings[key], int):
            raise ConfigError(f"contest.{key} must be a whole number, got {settings[key]}")
        check_range(f"contest.{key}", settings[key], 1, 1e9)


def _check_machine(config: Config, path: Path) -> None:
    """Raise `ConfigError` if the job in `path` measured the speed of another machine."""
    measured = RunFolder(path).read_environment()
    now = describe_environment(resolve_device(config.train.device))
    for key in ("cpu", "gpu"):
        if measured.get(key) != now[key]:
            raise ConfigError(
                f"{path} has the speed of another machine ({key} {measured.get(key)}, here {now[key]}): "
                "give another hydra.sweep.dir"
            )


def _values(override: Override) -> list[str]:
    """Return the values of an override, one or several.

    Raises:
        ConfigError: it is an interval or a pattern.
    """
    if override.is_interval_sweep() or isinstance(override.value(), Glob):
        raise ConfigError(f"{override.input_line}: a contest takes a list of values")
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def without_folders(word: str) -> str:
    """Return an override with the names of files in place of their paths, also in lists such as [A,B].

    Two files of one name keep the last folder too.
    """
    key, _, value = word.partition("=")
    if key not in PATHS:
        return word
    paths = PATH.findall(value)
    names = [path.rsplit("/", 1)[1] for path in paths]
    kept = 2 if len(set(names)) < len(set(paths)) else 1
    return f"{key}={PATH.sub(lambda found: '/'.join(found[0].split('/')[-kept:]), value)}"
