"""`gvc train`."""

from typing import TYPE_CHECKING, Annotated

import typer

from .options import ConfigDir, ConfigName, Overrides

if TYPE_CHECKING:
    from .compose.compose import HydraFlags


def train(
    overrides: Overrides = None,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="Run a job for every combination of a,b.")] = False,
    cfg: Annotated[str | None, typer.Option("--cfg", "-c", metavar="job|hydra|all", help="Print the config.")] = None,
    package: Annotated[str | None, typer.Option("--package", "-p", metavar="KEY", help="With --cfg: one part.")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.")] = False,
    info: Annotated[str | None, typer.Option("--info", "-i", metavar="WHAT", help="Print facts about Hydra.")] = None,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "config",
) -> None:
    """Train a model. The last line printed is the run folder.

    Config groups: model, head, grouping, data, tokenizer, optim, tracking, experiment, variant, sweep.

    Example: gvc train head=grouped train.max_steps=100
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
    run(overrides or [], flags)


def check_prints(flags: "HydraFlags") -> None:
    """Refuse flags that Hydra would ignore, or answer with its own usage.

    Raises:
        ConfigError: --cfg, --info, --resolve or --package are used wrongly.
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
