"""Hydra's launchers: the share of the machine that a job gets, and what each launcher needs."""

import math
import os
import re
import shutil
from typing import Any

from grouped_lm.errors import ConfigError
from grouped_lm.jobs.device_slots import Share, visible_gpus

EXTRAS = {"joblib": "sweep", "submitit": "sweep", "ray": "ray", "optuna": "optuna"}
"""A word in a plugin's name -> the extra of this package that installs it."""
LONGEST_MINUTES = 30 * 24 * 60
"""Limit for jobs of submitit on this machine; its own default is one hour."""


def launcher_kind(launcher: Any) -> str:
    """Return Basic, Joblib, Local (submitit on this machine), Slurm or Ray for a composed `hydra.launcher`."""
    return str(launcher["_target_"]).rsplit(".", 1)[-1].removesuffix("Launcher")


def check_launcher(launcher: Any) -> None:
    """Refuse a launcher without its scheduler, before any job is made.

    Raises:
        ConfigError: SLURM's commands are missing.
    """
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


def missing_plugin(message: str) -> str | None:
    """Return how to install the plugin that Hydra could not find, None for another message."""
    plugin = re.search(r"Could not (?:find|load) '?(hydra/(?:launcher|sweeper)/(\w+))", message)
    extra = plugin and next((extra for word, extra in EXTRAS.items() if word in plugin[2]), None)
    return f"{plugin[1]} is not installed: `pip install 'grouped-lm[{extra}]'` brings it" if plugin and extra else None
