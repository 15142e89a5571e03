"""`gvc plot`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import complete_run, starting


def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, or folders of them.", autocompletion=complete_run),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder for the files; default plots/ in the only RUN, or here."),
    ] = None,
) -> None:
    """Plot the loss of runs against tokens, minutes and memory, as SVG and PNG, and print the files.

    The line is the validation loss if it was measured several times (train.eval_every_steps), else the training loss.
    Losses of different tokenizers are in bits per byte.

    Example: gvc plot runs/dense runs/grouped --out plots
    """
    with starting():
        from grouped_lm.errors import ConfigError, RunFolderError, disk_errors
        from grouped_lm.report.curves import write_curves
        from grouped_lm.runs.table import collect_runs
        from grouped_lm.system.phases import phase

    if out is not None and out.suffix.lower() in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--out takes a folder, for several files, got {out}: write --out {out.with_suffix('')}")
    rows = [row for row in collect_runs(runs) if row.get("train/loss", row.get("val/loss")) is not None]
    if not rows:
        raise RunFolderError(
            f"no loss is logged in {', '.join(map(str, runs))}: wait for the first row of metrics.jsonl"
        )
    folder = out or (runs[0] / "plots" if len(runs) == 1 else Path("plots"))
    with disk_errors(folder), phase("drawing"):
        drawn = write_curves(rows, folder)
    print(*drawn, sep="\n")
