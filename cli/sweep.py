"""`gvc sweep`: run a preset of jobs with Hydra's multirun, each job exactly once."""

import shlex
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ConfigDir, Overrides, complete_preset, say, starting

if TYPE_CHECKING:
    from .compose.compose import HydraFlags
    from .compose.contests import Contest
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
    with starting():
        from grouped_lm.errors import ConfigError
        from grouped_lm.jobs.launch import check_processes
        from grouped_lm.system.console import terminal_width

        from .compose.compose import HydraFlags
        from .compose.contests import contest_of
        from .compose.sweep_plan import describe_presets, plan_sweep

    flags = HydraFlags(multirun=True, config_dir=config_dir)
    if show:
        width = terminal_width() or sys.maxsize
        for line in describe_presets(flags):
            print(textwrap.fill(line, width, subsequent_indent=" " * 28, break_long_words=False))
        return
    check_processes(None)
    if name is None:
        raise ConfigError("name a preset: `gvc sweep --list` shows them")
    words = [name, *(overrides or []), *(["--config-dir", config_dir] if config_dir else [])]
    if (contest := contest_of(name, overrides or [], flags)) is not None:
        try:
            _run_contest(contest, dry_run, max_jobs, fail_fast, only_failed)
        except (KeyboardInterrupt, SystemExit):
            say_how_to_go_on([stage.plan for stage in contest.stages()], None, words)
            raise
        return
    plan = plan_sweep(name, overrides or [], flags)
    if dry_run:
        print("\n".join(plan.describe()))
        return
    _run_plan(plan, flags, words, max_jobs, fail_fast, only_failed)


def _run_plan(
    plan: "SweepPlan", flags: "HydraFlags", words: list[str], max_jobs: int | None, fail_fast: bool, only_failed: bool
) -> None:
    """Run the jobs of a sweep that are left, and write its tables and plots."""
    from grouped_lm.errors import ConfigError
    from grouped_lm.jobs.sweep import SweepLimits, driver_ledger, failures
    from grouped_lm.report.tables import runs_csv, write_results
    from grouped_lm.runs.tracking import log_sweep
    from grouped_lm.system.phases import phase

    from .compose.sweep_plan import drive, report_states

    if plan.n_trials is not None and (fail_fast or only_failed):
        raise ConfigError("--fail-fast and --only-failed need a list of jobs, and Optuna chooses them as it goes")
    if only_failed and not failures(plan.jobs):
        say(f"gvc: --only-failed: no job in {plan.folder} has failed, and none is run")
    try:
        with driver_ledger(plan.folder) as ledger:
            limits = SweepLimits(ledger, max_jobs=max_jobs, fail_fast=fail_fast, only_failed=only_failed)
            drive(plan, flags, limits)
    except (KeyboardInterrupt, SystemExit):
        say_how_to_go_on([plan], plan.total, words)
        raise
    finally:
        with phase("writing tables and plots"):
            rows = write_results(plan.folder, plan.total, [path for _, path in plan.find_jobs()])
    if rows:
        log_sweep(plan.jobs[0][0].tracking, plan.folder, runs_csv(rows))
    print(plan.folder, flush=True)
    report_states(plan.find_jobs(), may_stop_early=max_jobs is not None or only_failed)


def _run_contest(contest: "Contest", dry_run: bool, max_jobs: int | None, fail_fast: bool, only_failed: bool) -> None:
    """Run a contest, or list its jobs that are known now."""
    from grouped_lm.report.tables import write_results

    from .compose.contests import run_contest
    from .compose.sweep_plan import report_states

    if dry_run:
        for stage in contest.stages():
            print("\n".join(stage.plan.describe()))
        print("further jobs follow from the results of these")
        return
    plans = run_contest(contest, max_jobs, fail_fast, only_failed)
    folder = plans[0].folder
    write_results(folder)
    print(folder, flush=True)
    report_states([job for plan in plans for job in plan.jobs], may_stop_early=max_jobs is not None or only_failed)


def say_how_to_go_on(plans: "list[SweepPlan]", total: int | None, words: list[str]) -> None:
    """Print how much of a stopped sweep is done, its folder, and the command that continues it.

    `total` is the number of jobs, None if further ones follow from the results of those that are known.
    """
    from grouped_lm.jobs.sweep import job_state
    from grouped_lm.runs.folder import COMPLETE

    jobs = [job for plan in plans for job in plan.find_jobs()]
    done = sum(job_state(config, path) == COMPLETE for config, path in jobs)
    known, folder = total or f"{len(jobs)} or more", plans[0].folder
    say(f"gvc: stopped: {done} of {known} jobs are complete in {folder}; to continue:")
    words = [f"hydra.sweep.dir={folder}" if w.startswith("hydra.sweep.dir=") and "${" in w else w for w in words]
    say(shlex.join(["gvc", "sweep", *words]))  # not wrapped, so that it can be copied
