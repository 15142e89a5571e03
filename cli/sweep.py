"""`gvc sweep`."""

from typing import Annotated

import typer

from .train import Cfg, ConfigDir, Info, Overrides, Package, Resolve, train_job


def sweep(
    name: Annotated[str, typer.Argument(help="A preset of conf/sweep, such as heads or seeds.")],
    overrides: Overrides = None,
    cfg: Cfg = None,
    package: Package = None,
    resolve: Resolve = False,
    info: Info = None,
    config_dir: ConfigDir = None,
) -> None:
    """Run a preset of jobs through Hydra's multirun."""
    from .hydra_entry import HydraFlags, run

    flags = HydraFlags(
        multirun=cfg is None and info is None,
        cfg=cfg,
        package=package,
        resolve=resolve,
        info=info,
        config_dir=config_dir,
    )
    run([f"sweep={name}", *(overrides or [])], flags, train_job)
