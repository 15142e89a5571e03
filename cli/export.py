"""`gvc export` and `gvc import`."""

from pathlib import Path
from typing import Annotated

import typer

from .eval import RunArgument


def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="The format; hf is that of Hugging Face transformers.")] = "hf",
    out: Annotated[Path | None, typer.Option(help="A new folder; default RUN/hf.")] = None,
) -> None:
    """Write a run's last checkpoint, with its tokenizer, for transformers; the folder is printed.

    A dense head makes a plain GPT-2 or GPT-Neo. A compressed one brings its own modelling file: load it with
    AutoModelForCausalLM and trust_remote_code.
    """
    from grouped_lm.errors import ConfigError
    from grouped_lm.hf.export import export_run

    if to != "hf":
        raise ConfigError(f"--to must be hf, got {to!r}")
    print(export_run(run, out or run / "hf"))


def import_model(
    source: Annotated[Path, typer.Argument(help="A folder with config.json and model.safetensors.", metavar="FOLDER")],
    out: Annotated[Path, typer.Option(help="A new run folder.")],
) -> None:
    """Make a run of a GPT-2 or GPT-Neo checkpoint of transformers, for sample, eval and export."""
    from grouped_lm.hf.export import import_checkpoint

    print(import_checkpoint(source, out))
