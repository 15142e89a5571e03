"""`gvc export` and `gvc import`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import RunArgument, starting


def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="The format; hf is that of Hugging Face transformers.")] = "hf",
    out: Annotated[Path | None, typer.Option(help="A new folder; default RUN/hf.")] = None,
) -> None:
    """Write the last checkpoint of a run, with its tokenizer, for transformers, and print the folder.

    A dense head without biases and reserve makes a plain GPT-2 or GPT-Neo. Other heads bring their own modelling file:
    load the folder with AutoModelForCausalLM and trust_remote_code. README.md in the folder shows how.

    Example: gvc export runs/my-run --out my-model
    """
    with starting():
        from grouped_lm.errors import ConfigError
        from grouped_lm.hf.export import export_run

    if to != "hf":
        raise ConfigError(f"--to must be hf, got {to!r}")
    print(export_run(run, out or run / "hf"))


def import_model(
    source: Annotated[
        Path,
        typer.Argument(help="A folder with config.json, model.safetensors and a tokenizer.", metavar="FOLDER"),
    ],
    out: Annotated[Path, typer.Option(help="A new run folder.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="gpt2, bytes, or a tokenizer.json; default: the tokenizer in FOLDER.", metavar="NAME|FILE"),
    ] = None,
) -> None:
    """Make a run of a GPT-2 or GPT-Neo checkpoint of transformers, for sample, eval and export.

    The tokenizer in the folder is kept, or refused where gvc has none with the same ids. Rows of the vocabulary
    without a token are left out; this is said.

    Example: gvc import gpt2-folder --out runs/gpt2
    """
    with starting():
        from grouped_lm.hf.export import import_checkpoint

    print(import_checkpoint(source, out, tokenizer))
