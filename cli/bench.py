"""`gvc bench`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigDir, Json, Overrides, complete_grid, complete_suite, starting


def bench(
    suite: Annotated[
        str,
        typer.Argument(metavar="SUITE", help="heads, steps, memory, decode or vocab.", autocompletion=complete_suite),
    ],
    overrides: Overrides = None,
    grid: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="quick, full, gpu, or bench/NAME.yaml of yours.", autocompletion=complete_grid
        ),
    ] = "quick",
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Results; default runs/bench/SUITE-GRID.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write the CSV and the plots here.")] = None,
    as_json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """Measure output layers side by side.

    The same command continues a bench that was stopped. Overrides are the keys of the bench: data=text data.train=FILE
    heads.n_embd=[128].

    Example: gvc bench steps steps.models=[gpt2-1m] competitors=[grouped,adaptive]
    """
    with starting():
        from grouped_lm.bench.run import run_suite, show

        from .compose.run import compose_bench

    settings, models = compose_bench(suite, grid, overrides or [], config_dir)
    words = ["gvc", "bench", suite, "--grid", grid, *(overrides or [])]
    folder, suffix = folder or Path("runs/bench") / f"{suite}-{grid}", "" if grid == "full" else f"-{grid}"
    rows = run_suite(suite, settings, models, folder, shlex.join(words), out, suffix)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        show(suite, rows)
