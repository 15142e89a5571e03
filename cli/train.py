"""`gvc train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from grouped_lm.config import Config

    from .compose.compose import HydraFlags

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OVERRIDES]...", help="Hydra overrides: head=dense train.max_steps=100 ..."),
]
Multirun = Annotated[bool, typer.Option("--multirun", "-m", help="Run a job for every combination of a,b values.")]
Cfg = Annotated[str | None, typer.Option("--cfg", "-c", metavar="job|hydra|all", help="Print the config, run nothing.")]
Package = Annotated[str | None, typer.Option("--package", "-p", help="With --cfg: only this part of it.")]
Resolve = Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.")]
Info = Annotated[str | None, typer.Option("--info", "-i", help="Print Hydra's information: all, defaults, plugins ...")]
ConfigDir = Annotated[str | None, typer.Option("--config-dir", help="A folder with config files of your own.")]
ConfigName = Annotated[str, typer.Option("--config-name", help="Primary config, here or in --config-dir.")]


def train(
    overrides: Overrides = None,
    multirun: Multirun = False,
    cfg: Cfg = None,
    package: Package = None,
    resolve: Resolve = False,
    info: Info = None,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "config",
) -> None:
    """Train a model. The last line on stdout is the run folder.

    Config groups: model head grouping data tokenizer optim tracking experiment sweep, and Hydra's own.
    """
    from .compose.compose import HydraFlags
    from .compose.run import run

    flags = HydraFlags(
        multirun=multirun,
        cfg=cfg,
        package=package,
        resolve=resolve,
        info=info,
        config_dir=config_dir,
        config_name=config_name,
        may_sweep=True,
    )
    check_prints(flags)
    run(overrides or [], flags, train_job)


def check_prints(flags: "HydraFlags") -> None:
    """Refuse what Hydra would answer with its own usage, or not at all.

    Raises:
        ConfigError: --cfg, --info or what belongs to them.
    """
    from grouped_lm.config import check_choice
    from grouped_lm.errors import ConfigError

    if flags.cfg is not None:
        check_choice("--cfg", flags.cfg, ("job", "hydra", "all"))
    if flags.info is not None:
        check_choice("--info", flags.info, ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"))
    given = {"--multirun": flags.multirun, "--cfg": flags.cfg, "--info": flags.info}
    asked = [name for name, value in given.items() if value]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} exclude each other: leave one out")
    if flags.cfg is None and (flags.resolve or flags.package is not None):
        raise ConfigError("--resolve and --package say how --cfg prints: add --cfg job")


def train_job(config: "Config", run_dir: Path) -> Any:
    """Train in `run_dir`, print it, and return the validation loss, which a sweeper may minimise."""
    from grouped_lm.distributed.process_group import rank_and_size
    from grouped_lm.jobs.launch import run_training

    result = run_training(config, run_dir)
    if rank_and_size()[0] == 0:
        print(run_dir, flush=True)
    return result["val/loss"]
