"""`gvc sweep`: a preset of jobs, run by Hydra's multirun, each job finished exactly once."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .train import ConfigDir, Overrides


def sweep(
    name: Annotated[str | None, typer.Argument(help="A preset of conf/sweep, such as heads or seeds.")] = None,
    overrides: Overrides = None,
    show: Annotated[bool, typer.Option("--list", help="Say what each preset runs; run nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs and their states; run nothing.")] = False,
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Start at most so many jobs now.")] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Start no job after one that failed.")] = False,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Run those that failed before, no others.")
    ] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Run a preset of jobs; run it again, and only what is left is done. The last line on stdout is its folder.

    A job that fails does not stop the others: at the end the exit code is 1, and its reason is said.
    """
    from grouped_lm.errors import ConfigError, GvcError
    from grouped_lm.report import write_results
    from grouped_lm.run_folder import COMPLETE
    from grouped_lm.sweep import SweepLimits, failures, job_state
    from grouped_lm.sweep_display import SweepDisplay

    from .hydra_entry import HydraFlags, explained, launch
    from .sweep_plan import SweepTask, describe_presets, plan_sweep

    flags = HydraFlags(multirun=True, config_dir=config_dir)
    if show:
        print("\n".join(describe_presets(flags)))
        return
    if name is None:
        raise ConfigError("name a preset: `gvc sweep --list` shows them")
    plan = plan_sweep(name, overrides or [], flags)
    if dry_run:
        print("\n".join(plan.describe()))
        return
    try:
        with (
            tempfile.TemporaryDirectory(prefix="gvc-sweep-") as ledger,
            SweepDisplay(plan.jobs),
            explained(plan.overrides, flags),
        ):
            limits = SweepLimits(Path(ledger), max_jobs=max_jobs, fail_fast=fail_fast, only_failed=only_failed)
            launch(plan.overrides, flags, SweepTask(limits, wait=False))
            if limits.any_left_to_others():  # see them through, and take over where the other driver dies
                launch(plan.overrides, flags, SweepTask(limits, wait=True))
    finally:
        write_results(plan.folder)
    print(plan.folder, flush=True)
    failed = failures(plan.jobs)
    if failed:
        raise GvcError(f"{len(failed)} of {len(plan.jobs)} jobs failed: {'; '.join(failed)}")
    left = [path.name for config, path in plan.jobs if job_state(config, path) != COMPLETE]
    if left and max_jobs is None and not only_failed:
        raise GvcError(f"{len(left)} of {len(plan.jobs)} jobs are not done ({', '.join(left)}): run the command again")
