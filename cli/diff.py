"""`gvc diff`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, complete_run, starting


def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another one.", autocompletion=complete_run)],
    as_json: Json = False,
) -> None:
    """Compare two runs: the config keys that differ, the final figures, the machines and commits.

    If `gvc eval` was run for both on one text, the difference of their losses is tested as `gvc eval RUN RUN` does.

    Example: gvc diff runs/dense runs/grouped
    """
    with starting():
        from grouped_lm.report.diff import compare_two, print_diff

    found = compare_two(first, second)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_diff(found)
