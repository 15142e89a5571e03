"""Plan a sweep: its folder, its jobs and their folders, before any of them exists."""

from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from grouped_lm.config import Config
from grouped_lm.errors import ConfigError
from grouped_lm.jobs.preflight import preflight

from .compose import (
    CONF,
    HydraFlags,
    check_folders,
    composing,
    config_groups,
    expand_jobs,
    parse,
    to_config,
)
from .explain import RENAMED_SWEEPS, explained, nearest
from .files import check_config_files
from .launchers import LONGEST_MINUTES, check_launcher, launcher_kind, missing_plugin, share_of_job
from .search import is_search

if TYPE_CHECKING:
    from grouped_lm.jobs.sweep import SweepLimits


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
        from grouped_lm.jobs.sweep import jobs_below

        return self.jobs if self.n_trials is None else jobs_below(self.folder)

    def describe(self) -> list[str]:
        """Return a line per job: its state and its folder."""
        from grouped_lm.jobs.sweep import job_state

        lines = [f"{job_state(config, run_dir):12} {run_dir}" for config, run_dir in self.find_jobs()]
        left = self.total - len(lines)
        return lines + ([f"{left} more trials, whose values Optuna chooses as it goes"] if left > 0 else [])


@dataclass(frozen=True)
class SweepTask:
    """The function that Hydra's launchers run for each job, in their worker processes too."""

    limits: "SweepLimits"
    wait: bool

    def __call__(self, config: Config, run_dir: Path) -> float:
        """Run one job and return its validation loss for sweepers, infinite if it has none."""
        from grouped_lm.jobs.sweep import run_limited

        return run_limited(config, run_dir, self.limits, self.wait, share_of_job(HydraConfig.get().launcher))


def plan_sweep(name: str, overrides: list[str], flags: HydraFlags) -> SweepPlan:
    """Compose, check and name every job of a preset.

    An override replaces the values that the preset sweeps. The sweep's folder is runs/NAME unless hydra.sweep.dir is
    given. A job's folder is named after its values, so that the same command finds it again.

    Raises:
        ConfigError, DataError: An unknown preset, or a wrong value or data in any job.
    """
    if flags.config_dir:
        check_config_files(Path(flags.config_dir))
    presets = config_groups(flags.config_dir)["sweep"]
    if name in RENAMED_SWEEPS:
        raise ConfigError(f"sweep {name} is now {RENAMED_SWEEPS[name]}")
    if name not in presets:
        raise ConfigError(f"sweep {name} is not known{nearest(name, presets)}; there are {', '.join(presets)}")
    with explained([f"sweep={name}", *overrides], flags), composing(flags) as compose_with:
        base = compose_with([f"sweep={name}"], return_hydra_config=True)
        check_folders(parse(overrides))
        given = {o.key_or_group for o in parse(overrides)}
        params = {key: value for key, value in (base.hydra.sweeper.get("params") or {}).items() if key not in given}
        swept = sorted({*params, *(o.key_or_group for o in parse(overrides) if o.is_sweep_override())})
        words = [f"sweep={name}", "hydra.sweeper.params=null", *(f"{key}={value}" for key, value in params.items())]
        words += overrides
        if "hydra.sweep.dir" not in given:
            words.append(f"hydra.sweep.dir=runs/{name}")
        if "tracking.group" not in given:
            words.append(f"tracking.group={name}")
        if "hydra.sweep.subdir" not in given:
            words.append(f'hydra.sweep.subdir="{folder_name(swept)}"')
        chosen = compose_with(words_without_sweeps(words), return_hydra_config=True).hydra
        check_launcher(chosen.launcher)
        if launcher_kind(chosen.launcher) == "Local" and "hydra.launcher.timeout_min" not in given:
            words.append(f"hydra.launcher.timeout_min={LONGEST_MINUTES}")
        jobs = []
        for job in expand_jobs(interval_ends(words) if is_search(chosen.sweeper) else words, {}):
            composed = compose_with(job, return_hydra_config=True)
            folder = Path(composed.hydra.sweep.dir)
            run_dir = folder / composed.hydra.sweep.subdir
            OmegaConf.set_struct(composed, False)
            del composed["hydra"]
            jobs.append((to_config(composed), run_dir))
    for config, _ in jobs:
        preflight(config, here=False)
    if is_search(chosen.sweeper):
        return SweepPlan(folder, words, jobs, chosen.sweeper.n_trials, chosen.sweeper.sampler.get("seed") or 0)
    twice = [path.name for path, count in Counter(path for _, path in jobs).items() if count > 1]
    if twice:
        raise ConfigError(f"two jobs would share the folder {twice[0]}: leave hydra.sweep.subdir to gvc")
    return SweepPlan(folder, words, jobs)


def words_without_sweeps(words: list[str]) -> list[str]:
    """Return the overrides that are the same for every job."""
    return [o.input_line or "" for o in parse(words) if not o.is_sweep_override()]


def interval_ends(words: list[str]) -> list[str]:
    """Return the overrides with each interval replaced by its two ends. Values between them are not checked."""
    ends = []
    for override in parse(words):
        value: Any = override.value()
        is_interval = override.is_interval_sweep()
        ends.append(f"{override.key_or_group}={value.start},{value.end}" if is_interval else override.input_line or "")
    return ends


def folder_name(keys: list[str]) -> str:
    """Return the pattern of a job's folder name: every swept key with its value."""
    groups = config_groups()
    values = (f"${{hydra.runtime.choices.{key}}}" if key in groups else f"${{gvc_slug:${{{key}}}}}" for key in keys)
    return ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in zip(keys, values, strict=True)) or "only"


def describe_presets(flags: HydraFlags) -> list[str]:
    """Return a line per preset: its name, number of jobs, description, and time if it is known."""
    lines = []
    with composing(flags) as compose_with:
        for name in config_groups()["sweep"]:
            try:
                sweeper = compose_with([f"sweep={name}"], return_hydra_config=True).hydra.sweeper
            except HydraException as error:
                lines.append(f"{name:18}   - jobs  {missing_plugin(str(error)) or error}")
                continue
            params: dict[str, Any] = dict(sweeper.get("params") or {})
            count = sweeper.n_trials if is_search(sweeper) else len(expand_jobs([], params))
            text = (files(CONF) / "sweep" / f"{name}.yaml").read_text(encoding="utf-8")
            about = " ".join(line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line)
            lines.append(f"{name:18} {count:3} jobs  {about}{known_duration(Path('runs') / name, count)}")
    return lines


def known_duration(folder: Path, count: int) -> str:
    """Return the time of `count` jobs, estimated from a complete one in `folder`, or an empty text."""
    from grouped_lm.runs.folder import RunFolder

    for path in sorted(folder.glob("*/result.json")):
        seconds = (RunFolder(path.parent).read_result() or {}).get("time/total_s")
        if seconds:
            whole = seconds * count
            return f" (about {whole / 60:,.0f} minutes here)" if whole >= 120 else f" (about {whole:.0f} s here)"
    return ""
