"""Plan a sweep (its folder, its jobs and their folders, before any of them exists), and let Hydra run it.

In a search, Optuna chooses the values of the jobs. Its study is stored in the sweep's folder, and continued there.
"""

import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from grouped_lm.config import Config
from grouped_lm.errors import BusyError, ConfigError, GvcError
from grouped_lm.jobs.device_slots import Share, visible_gpus
from grouped_lm.jobs.launch import preflight
from grouped_lm.jobs.sweep import SweepDisplay, SweepLimits, failures, job_state, jobs_below, run_limited
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.identity import changed_fields, config_identity
from grouped_lm.system.files import shared_lock
from grouped_lm.system.phases import phase, track

from .compose import (
    CONF,
    WANDB_VARIABLES,
    HydraFlags,
    check_folders,
    composing,
    config_groups,
    env_value,
    expand_jobs,
    parse,
    quoted,
    to_config,
)
from .explain import RENAMED_SWEEPS, explained, missing_plugin, nearest
from .run import launch
from .shorthand import adopt_source
from .slurm_launcher import queued_again

LONGEST_MINUTES = 30 * 24 * 60
"""Limit for jobs of submitit on this machine; its own default is one hour."""
STUDY = "study.db"
STUDY_NAME = "gvc"
ABANDONED = "abandoned_trials"
"""Attribute of the study: trials that were killed, or whose job failed, which are repeated under new numbers."""


def launcher_kind(launcher: Any) -> str:
    """Return Basic, Joblib, Local (submitit on this machine), Slurm or Ray for a composed `hydra.launcher`."""
    return str(launcher["_target_"]).rsplit(".", 1)[-1].removesuffix("Launcher")


def check_launcher(launcher: Any) -> None:
    """Raise `ConfigError` if SLURM's commands are missing and the launcher needs them, before any job is made."""
    if launcher_kind(launcher) == "Slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "this launcher hands jobs to SLURM, and there is no sbatch here: start it on a login node of the "
            "cluster, or take hydra/launcher=submitit_local or local_2"
        )


def share_of_job(launcher: Any) -> Share:
    """Return the CPU threads and device slots of one job under `hydra.launcher`."""
    cores, kind = os.cpu_count() or 1, launcher_kind(launcher)
    if kind == "Slurm":
        per_gpu, gpus = launcher.get("cpus_per_gpu"), launcher.get("gpus_per_node")
        return Share(threads=launcher.get("cpus_per_task") or (per_gpu * gpus if per_gpu and gpus else None))
    if kind == "Ray":
        return Share(threads=math.ceil(launcher.ray.remote.get("num_cpus", 1)) or 1)
    if kind == "Local":
        threads = min(cores, launcher.get("cpus_per_task") or 1)
        return Share(threads=threads, cpu_slots=cores // threads, per_gpu=1)
    side_by_side = launcher.get("n_jobs", 1)
    side_by_side = side_by_side if side_by_side > 0 else cores
    threads = max(1, cores // side_by_side) if side_by_side > 1 else None
    return Share(threads=threads, per_gpu=math.ceil(side_by_side / max(1, len(visible_gpus()))))


@dataclass(frozen=True)
class SweepPlan:
    """The jobs of a sweep, and the overrides with which Hydra runs them."""

    folder: Path
    overrides: list[str]
    jobs: list[tuple[Config, Path]]
    """For a search, the jobs at the ends of its intervals. They are checked, and not run."""
    n_trials: int | None = None
    """The number of jobs of a search; None if the jobs are known."""
    sampler_seed: int = 0

    @property
    def total(self) -> int:
        """The number of jobs in the end."""
        return len(self.jobs) if self.n_trials is None else self.n_trials

    def find_jobs(self) -> list[tuple[Config, Path]]:
        """Return the jobs that are known now."""
        return self.jobs if self.n_trials is None else jobs_below(self.folder)

    def describe(self) -> list[str]:
        """Return a line per job: its state and its folder."""
        lines = [f"{job_state(config, run_dir):12} {run_dir}" for config, run_dir in self.find_jobs()]
        left = self.total - len(lines)
        return lines + ([f"{left} more trials, whose values Optuna chooses as it goes"] if left > 0 else [])


@dataclass(frozen=True)
class SweepTask:
    """The function that Hydra's launchers run for each job, in their worker processes too."""

    limits: SweepLimits
    wait: bool
    folder: Path = field(default_factory=Path.cwd)
    """Where the sweep was started. Workers of Ray are started elsewhere, and the texts may have relative paths."""

    def __call__(self, config: Config, run_dir: Path) -> float:
        """Run one job and return its validation loss for sweepers, infinite if it has none."""
        launcher = HydraConfig.get().launcher
        with chdir(self.folder), queued_again() if launcher_kind(launcher) == "Slurm" else nullcontext():
            return run_limited(config, run_dir, self.limits, self.wait, share_of_job(launcher))


def plan_sweep(name: str, overrides: list[str], flags: HydraFlags) -> SweepPlan:
    """Compose, check and name every job of a preset.

    An override replaces the values that the preset sweeps. The sweep's folder is runs/NAME unless hydra.sweep.dir is
    given. A job's folder is named after its values, so that the same command finds it again.
    """
    if name in RENAMED_SWEEPS:
        raise ConfigError(f"sweep {name} is now {RENAMED_SWEEPS[name]}")
    with explained([f"sweep={name}", *overrides], flags), composing(flags) as compose_with, phase("composing the jobs"):
        words = words_of_sweep(name, overrides, flags, compose_with)
        same = [o.input_line or "" for o in parse(words) if not o.is_sweep_override()]  # for every job
        chosen = compose_with(same, return_hydra_config=True).hydra
        check_launcher(chosen.launcher)
        folder = Path(chosen.sweep.dir)
        words += words_of_launcher(chosen.launcher, folder, {o.key_or_group for o in parse(overrides)})
        jobs = []
        for job in expand_jobs(interval_ends(words) if is_search(chosen.sweeper) else words, {}):
            composed = compose_with(job, return_hydra_config=True)
            run_dir = folder / composed.hydra.sweep.subdir
            OmegaConf.set_struct(composed, False)
            del composed["hydra"]
            jobs.append((to_config(composed), run_dir))
    if is_search(chosen.sweeper):
        refuse_other_search(folder, jobs)
    for config, _ in track(jobs, "checking the jobs", len(jobs)):
        preflight(config, here=False)
    for config, run_dir in jobs_below(folder) if is_search(chosen.sweeper) else jobs:
        if job_state(config, run_dir) != "changed":  # such a one is set aside and trained again
            RunFolder(run_dir).check_same_inputs(config)
    if is_search(chosen.sweeper):
        return SweepPlan(folder, words, jobs, chosen.sweeper.n_trials, chosen.sweeper.sampler.get("seed") or 0)
    twice = [path.name for path, count in Counter(path for _, path in jobs).items() if count > 1]
    if twice:
        raise ConfigError(f"two jobs would share the folder {twice[0]}: leave hydra.sweep.subdir to gvc")
    return SweepPlan(folder, words, jobs)


def words_of_sweep(
    name: str, overrides: list[str], flags: HydraFlags, compose_with: Callable[..., DictConfig]
) -> list[str]:
    """Return the overrides of a sweep: those of its preset, those that are given, and gvc's own for its folder."""
    presets = config_groups(flags.config_dir)["sweep"]
    if name not in presets:
        raise ConfigError(f"sweep {name} is not known{nearest(name, presets)}; there are {', '.join(presets)}")
    base = compose_with([f"sweep={name}"], return_hydra_config=True)
    check_folders(parse(overrides))
    given = {o.key_or_group for o in parse(overrides)}
    if "hydra.run.dir" in given:
        raise ConfigError("gvc sweep has hydra.sweep.dir, the folder of all jobs, and not hydra.run.dir")
    params = {key: value for key, value in (base.hydra.sweeper.get("params") or {}).items() if key not in given}
    swept = sorted({*params, *(o.key_or_group for o in parse(overrides) if o.is_sweep_override())})
    words = [f"sweep={name}", "hydra.sweeper.params=null", *(f"{key}={value}" for key, value in params.items())]
    words += adopt_source(overrides, params, flags.config_dir)
    defaults = {"hydra.sweep.dir": f"runs/{name}"}
    defaults |= {} if env_value(WANDB_VARIABLES["group"]) else {"tracking.group": name}
    defaults["hydra.sweep.subdir"] = f'"{folder_name(swept)}"'
    return words + [f"{key}={value}" for key, value in defaults.items() if key not in given]


def words_of_launcher(launcher: Any, folder: Path, given: set[str]) -> list[str]:
    """Return the overrides that a launcher needs, beside the `given` keys, and the one folder of the sweep.

    The folder is composed once, since Hydra would compose another one from ${now:...} for each job.
    """
    kind = launcher_kind(launcher)
    words = [f"hydra.sweep.dir={quoted(str(folder.absolute() if kind == 'Ray' else folder))}"]  # Ray stands elsewhere
    if kind == "Local" and "hydra.launcher.timeout_min" not in given:
        words.append(f"hydra.launcher.timeout_min={LONGEST_MINUTES}")
    if kind == "Ray":
        init = launcher.ray.init
        if (init.get("address") or os.environ.get("RAY_ADDRESS")) and "object_store_memory" not in init:
            words.append("+hydra.launcher.ray.init.object_store_memory=null")  # a running Ray refuses Hydra's default
    return words


def refuse_other_search(folder: Path, jobs: list[tuple[Config, Path]]) -> None:
    """Raise `ConfigError` if the trials in `folder` are of another search than the one between the ends `jobs`."""
    first, *others = (config_identity(config) for config, _ in jobs)
    swept = {key for other in others for key in first.keys() | other.keys() if first.get(key) != other.get(key)}
    for config, _ in jobs_below(folder):
        saved = config_identity(config)
        old, new = ({key: value for key, value in found.items() if key not in swept} for found in (saved, first))
        if changed := changed_fields(old, new):
            raise ConfigError(f"{folder} has trials of another search ({changed}): give another hydra.sweep.dir")


def interval_ends(words: list[str]) -> list[str]:
    """Return the overrides with each interval replaced by its two ends. Values between them are not checked."""

    def replaced(override: Override) -> str:
        if not override.is_interval_sweep():
            return override.input_line or ""
        value: Any = override.value()
        return f"{override.key_or_group}={value.start},{value.end}"

    return [replaced(override) for override in parse(words)]


def folder_name(keys: list[str]) -> str:
    """Return the pattern of a job's folder name: every swept key with its value."""
    groups = config_groups()
    values = (f"${{hydra.runtime.choices.{key}}}" if key in groups else f"${{gvc_slug:${{{key}}}}}" for key in keys)
    return ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in zip(keys, values, strict=True)) or "only"


def describe_presets(flags: HydraFlags) -> list[str]:
    """Return a line per preset: its name, number of jobs, description, and time if it is known."""
    lines = []
    with composing(flags) as compose_with:
        for name in config_groups(flags.config_dir)["sweep"]:
            try:
                sweeper = compose_with([f"sweep={name}"], return_hydra_config=True).hydra.sweeper
            except (HydraException, yaml.YAMLError) as error:
                about = missing_plugin(str(error)) or " ".join(str(error).split())
                lines.append(f"{name:18}   - jobs  {about}")
                continue
            params: dict[str, Any] = dict(sweeper.get("params") or {})
            count = sweeper.n_trials if is_search(sweeper) else len(expand_jobs([], params))
            text = preset_file(name, flags.config_dir).read_text(encoding="utf-8")
            about = " ".join(line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line)
            lines.append(f"{name:18} {count:3} jobs  {about}{known_duration(Path('runs') / name, count)}")
    return lines


def preset_file(name: str, config_dir: str | None) -> Traversable:
    """Return the file of a preset: ours, or else the user's. Hydra looks for it in this order too."""
    ours = files(CONF) / "sweep" / f"{name}.yaml"
    return ours if ours.is_file() else Path(config_dir or ".") / "sweep" / f"{name}.yaml"


def known_duration(folder: Path, count: int) -> str:
    """Return the time of `count` jobs, estimated from a complete one in `folder`, or an empty text."""
    for path in sorted(folder.glob("*/result.json")):
        seconds = (RunFolder(path.parent).read_result() or {}).get("time/total_s")
        if seconds:
            whole = seconds * count
            return f" (about {whole / 60:,.0f} minutes here)" if whole >= 120 else f" (about {whole:.0f} s here)"
    return ""


def is_search(sweeper: Any) -> bool:
    """Return whether a composed `hydra.sweeper` chooses values itself."""
    return "optuna" in str(sweeper["_target_"])


@contextmanager
def continued_study(plan: SweepPlan, at_most: int | None) -> Iterator[list[str]]:
    """Lock the study of a search, and yield the overrides for the trials that are left, none if all are done.

    Trials that a killed process left, and those that failed, are repeated first, with the same values, so that their
    jobs continue from their checkpoints. The sampler's seed depends on the number of trials, or it would propose the
    first values again. This call runs `at_most` trials, or all if that is None.
    """
    import optuna

    folder = plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{folder / STUDY}"
    try:
        with shared_lock(folder / ".search.lock", 0):
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = optuna.create_study(storage=storage, study_name=STUDY_NAME, load_if_exists=True)
            ask_again(study)
            abandoned = study.user_attrs.get(ABANDONED, [])
            ended = [t for t in study.trials if t.state.is_finished() and t.number not in abandoned]
            left = max(0, (plan.n_trials or 0) - len(ended))
            overrides = [
                f"hydra.sweeper.storage={quoted(storage)}",
                f"hydra.sweeper.study_name={STUDY_NAME}",
                f"hydra.sweeper.n_trials={left if at_most is None else min(left, at_most)}",
                "hydra.sweeper.max_failure_rate=1.0",
                f"hydra.sweeper.sampler.seed={plan.sampler_seed + len(study.trials)}",
            ]
            yield overrides if left else []
    except Timeout as error:
        raise BusyError(
            f"another gvc sweep searches in {folder}: wait for it, or give another hydra.sweep.dir"
        ) from error


def ask_again(study: Any) -> None:
    """Close the trials that a killed process left open, and queue their values as new trials, as those that failed."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE)):
        abandoned, is_open = study.user_attrs.get(ABANDONED, []), trial.state == TrialState.RUNNING
        if trial.number in abandoned or not (is_open or math.isinf(trial.value)):
            continue
        study.set_user_attr(ABANDONED, [*abandoned, trial.number])
        if trial.params:  # none if it was killed before it chose
            with warnings.catch_warnings(action="ignore"):  # optuna 2 calls the method experimental
                study.enqueue_trial(trial.params)
        if is_open:
            study.tell(trial.number, state=TrialState.FAIL)


def drive(plan: SweepPlan, flags: HydraFlags, limits: SweepLimits) -> None:
    """Let Hydra run the jobs, or the trials of the search, that are left and that the limits allow."""
    with SweepDisplay(plan.find_jobs, plan.total), explained(plan.overrides, flags):
        if plan.n_trials is not None:
            with continued_study(plan, limits.max_jobs) as search:
                if search:
                    launch([*plan.overrides, *search], flags, SweepTask(limits, wait=False))
            return
        launch(plan.overrides, flags, SweepTask(limits, wait=False))
        if limits.left_to_others():  # see them through, and take over where the other driver dies
            launch(plan.overrides, flags, SweepTask(limits, wait=True))


def report_states(jobs: list[tuple[Config, Path]], may_stop_early: bool) -> None:
    """Raise `GvcError` for jobs that failed, and for jobs that are not done unless that was asked for."""
    failed = failures(jobs)
    if failed:
        raise GvcError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}")
    states = [(path.name, job_state(config, path)) for config, path in jobs]
    left = [name for name, state in states if state != COMPLETE]
    taken = [name for name, state in states if state == "changed"]
    advice = (
        f"give another hydra.sweep.dir, another config has {', '.join(taken)}" if taken else "run the command again"
    )
    if left and not may_stop_early:
        raise GvcError(f"{len(left)} of {len(jobs)} jobs are not done ({', '.join(left)}): {advice}")
