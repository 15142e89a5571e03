"""`gvc bench`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .train import ConfigDir, Overrides


def bench(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="heads, steps, memory, decode or vocab.")],
    overrides: Overrides = None,
    grid: Annotated[
        str, typer.Option(help="What is measured: quick, full, or a file bench/NAME.yaml of yours.")
    ] = "quick",
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Cells, CSV, plots; default runs/bench/SUITE-GRID.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write bench-SUITE-GRID.csv and plots here, without -GRID for full."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout: every figure of every row.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Measure output layers side by side. A bench that was stopped goes on where it was.

    Overrides: heads.n_embd=[128] steps.models=\\[gpt2-1m] competitors=\\[grouped,adaptive] threads=2
    data=text data.train=FILE
    """
    from .compose.bench import compose_bench

    settings, models = compose_bench(suite, grid, overrides or [], config_dir)

    from grouped_lm.bench.run import run_suite, show

    words = ["gvc", "bench", suite, "--grid", grid, *(overrides or [])]
    folder, suffix = folder or Path("runs/bench") / f"{suite}-{grid}", "" if grid == "full" else f"-{grid}"
    rows = run_suite(suite, settings, models, folder, shlex.join(words), out, suffix)
    if as_json:
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        show(suite, rows)
