"""`gvc eval`."""

import json
from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[Path, typer.Argument(help="A run folder, as `gvc train` printed it.", metavar="RUN")]
SavedOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OVERRIDES]...", help="On top of the run's own config: data=text data.valid=my.txt ..."),
]


def evaluate_run(
    run: RunArgument,
    overrides: SavedOverrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Judge a run's last checkpoint on its whole validation set, or on another text."""
    from grouped_lm.display import figures_table, print_table
    from grouped_lm.evaluate import evaluate_checkpoint
    from grouped_lm.run_folder import RunFolder

    from .hydra_entry import override_saved

    config = override_saved(RunFolder(run).read_config(), overrides or [])
    figures = evaluate_checkpoint(run, config)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        print_table(figures_table(str(run), figures))
