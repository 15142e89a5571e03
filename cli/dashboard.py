"""`gvc dashboard`: a W&B workspace over the keys that runs log."""

from pathlib import Path
from typing import Annotated

import typer


def dashboard(
    offline: Annotated[bool, typer.Option("--offline", help="Write JSON, even with a login.")] = False,
    project: Annotated[str, typer.Option(metavar="NAME", help="The W&B project of the runs.")] = "gvc",
    entity: Annotated[str | None, typer.Option(metavar="NAME", help="A user or team; default: your own.")] = None,
    name: Annotated[str, typer.Option(metavar="TEXT", help="Name of the view.")] = "gvc: quality, memory, speed",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The JSON file.")] = Path("runs/dashboard.json"),
) -> None:
    """Create a W&B workspace with quality, memory, speed and their trade-off.

    Without a login the workspace is written as JSON. Offline runs are uploaded by wandb sync
    RUN/wandb/offline-run-*.
    """
    from grouped_lm.errors import DiskError
    from grouped_lm.report.dashboard import build_workspace, save_workspace, workspace_json
    from grouped_lm.runs.tracking import has_key
    from grouped_lm.system.files import write_text

    if not offline and has_key():
        print(save_workspace(entity, project, name))
        return
    text = workspace_json(build_workspace(entity or "entity", project, name))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise DiskError(f"--out {out} cannot be written ({error.strerror or error}): give another file") from error
    if not offline:
        typer.echo("gvc: no W&B key here: written as JSON; `wandb login` first saves it there", err=True)
    print(out)
