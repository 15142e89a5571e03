"""`gvc ls`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them; default runs/.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show runs side by side: quality, speed, memory, size."""
    from grouped_lm.display import print_table
    from grouped_lm.report import collect_runs, comparison_table

    rows = collect_runs(folders or [Path("runs")])
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(comparison_table(rows))
