"""`gvc train`."""

from typing import Annotated

import typer

from .options import ConfigDir, ConfigName, Overrides, starting


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

    Config groups: model, head, grouping, data, tokenizer, optim, prior, tracking, experiment, variant, sweep.

    init_from=RUN starts with the weights of another run. train.micro_batch_size=auto takes the largest micro-batch that
    fits into memory. gvc resume RUN continues a run that was stopped.

    Example: gvc train head=grouped train.max_steps=100
    """
    with starting():
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
    flags.check()
    run(overrides or [], flags)
