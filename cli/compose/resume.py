"""Continue a run from its own config."""

from pathlib import Path

from grouped_lm.config import Config
from grouped_lm.errors import ConfigError
from grouped_lm.system.phases import phase, say

from .run import override_saved
from .shorthand import start_command


def resume_run(run: Path, overrides: list[str]) -> None:
    """Train the run in a folder to its end, and print the folder. A complete run is left as it is.

    Raises:
        ConfigError: an override would make it another run.
        RunFolderError: this is no run folder, or another process trains in it.
    """
    with phase("starting"):
        from grouped_lm.evaluate.counts import counts_tokens
        from grouped_lm.jobs.launch import check_processes, preflight, run_training
        from grouped_lm.runs.folder import COMPLETE, RunFolder
        from grouped_lm.runs.load import load_config

    rank, size = check_processes()
    saved = load_config(run)
    saved.train.resume = "auto"
    config = override_saved(saved, overrides)
    refuse_other_run(run, saved, config, overrides)
    result = RunFolder(run).read_result() or {}
    if result.get("state") == COMPLETE:
        if rank == 0 and counts_tokens(config):
            say(f"gvc: {run} is complete: it has counted {result['trainer/tokens']:,} tokens")
        elif rank == 0:
            more = start_command(run, [f"train.max_steps={2 * config.train.max_steps}"])
            say(f"gvc: {run} is complete: {result['trainer/step']:,} steps are done. For more steps:\n{more}")
    else:
        preflight(config, run, processes=size)
        run_training(config, run, size)
    if rank == 0:
        print(run, flush=True)


def refuse_other_run(run: Path, saved: Config, config: Config, overrides: list[str]) -> None:
    """Raise `ConfigError` if `config` is another run than `saved`, the one in the folder `run`.

    The same text at another path is the same run.
    """
    from grouped_lm.runs.folder import RunFolder
    from grouped_lm.runs.identity import config_identity

    if changed := RunFolder(run).changed_settings(config_identity(saved), config):
        raise ConfigError(
            f"gvc resume continues {run} as it was begun, and this is another run ({changed}); a new run from its "
            f"weights: {start_command(run, overrides)}"
        )
