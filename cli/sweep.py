"""`gvc sweep`: run a preset of jobs with Hydra's multirun, each job exactly once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ConfigDir, Overrides, complete_preset

if TYPE_CHECKING:
    from grouped_lm.config import Config

    from .compose.compose import HydraFlags
    from .compose.sweep_plan import SweepPlan


def sweep(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A preset of conf/sweep.", autocompletion=complete_preset)
    ] = None,
    overrides: Overrides = None,
    show: Annotated[bool, typer.Option("--list", help="List the presets. Run nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the jobs and their states. Run nothing.")] = False,
    max_jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Start at most N jobs.")] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Start no job after one that failed.")] = False,
    only_failed: Annotated[bool, typer.Option("--only-failed", help="Run only jobs that failed before.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Run a preset of jobs. The last line printed is the folder of the sweep.

    The same command continues a sweep: complete jobs are not run again. A job that fails does not stop the others. The
    exit code is then 1, and the reasons are printed.

    Example: gvc sweep heads train.max_steps=100
    """
    from grouped_lm.errors import ConfigError
    from grouped_lm.jobs.launch import check_processes
    from grouped_lm.jobs.sweep import failures
    from grouped_lm.report.tables import runs_csv, write_results
    from grouped_lm.runs.tracking import log_sweep

    from .compose.compose import HydraFlags
    from .compose.sweep_plan import describe_presets, plan_sweep

    flags = HydraFlags(multirun=True, config_dir=config_dir)
    if show:
        print("\n".join(describe_presets(flags)))
        return
    check_processes(None)
    if name is None:
        raise ConfigError("name a preset: `gvc sweep --list` shows them")
    plan = plan_sweep(name, overrides or [], flags)
    if dry_run:
        print("\n".join(plan.describe()))
        return
    if plan.n_trials is not None and (fail_fast or only_failed):
        raise ConfigError("--fail-fast and --only-failed need a list of jobs, and Optuna chooses them as it goes")
    if only_failed and not failures(plan.jobs):
        typer.echo(f"gvc: --only-failed: no job in {plan.folder} has failed, and none is run", err=True)
    try:
        drive(plan, flags, max_jobs, fail_fast, only_failed)
    finally:
        rows = write_results(plan.folder)
    if rows:
        log_sweep(plan.jobs[0][0].tracking, plan.folder, runs_csv(rows))
    print(plan.folder, flush=True)
    report_states(plan.find_jobs(), may_stop_early=max_jobs is not None or only_failed)


def drive(
    plan: "SweepPlan", flags: "HydraFlags", max_jobs: int | None, fail_fast: bool = False, only_failed: bool = False
) -> None:
    """Let Hydra run the jobs, or the trials of the search, that are left."""
    from grouped_lm.jobs.progress import SweepDisplay
    from grouped_lm.jobs.sweep import SweepLimits, driver_ledger

    from .compose.explain import explained
    from .compose.run import launch
    from .compose.search import continued_study
    from .compose.sweep_plan import SweepTask

    with (
        driver_ledger(plan.folder) as ledger,
        SweepDisplay(plan.find_jobs, plan.total),
        explained(plan.overrides, flags),
    ):
        limits = SweepLimits(ledger, max_jobs=max_jobs, fail_fast=fail_fast, only_failed=only_failed)
        if plan.n_trials is not None:
            with continued_study(plan.folder, plan.n_trials, plan.sampler_seed, max_jobs) as search:
                if search:
                    launch([*plan.overrides, *search], flags, SweepTask(limits, wait=False))
            return
        launch(plan.overrides, flags, SweepTask(limits, wait=False))
        if limits.any_left_to_others():  # see them through, and take over where the other driver dies
            launch(plan.overrides, flags, SweepTask(limits, wait=True))


def report_states(jobs: "list[tuple[Config, Path]]", may_stop_early: bool) -> None:
    """Report jobs that failed, and jobs that are not done unless that was asked for.

    Raises:
        GvcError: There are such jobs; exit code 1.
    """
    from grouped_lm.errors import GvcError
    from grouped_lm.jobs.sweep import failures, job_state
    from grouped_lm.runs.folder import COMPLETE

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
