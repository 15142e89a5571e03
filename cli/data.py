"""`gvc data`."""

import json
import time
from typing import Annotated

import typer

from .train import Overrides

data_app = typer.Typer(no_args_is_help=True, help="Prepare text for training.")


@data_app.callback()
def data() -> None:
    """Prepare text for training."""


@data_app.command()
def prepare(
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print both manifests on stdout.")] = False,
) -> None:
    """Tokenize a corpus once into the cache: data=tinystories, or data=text data.train=... data.valid=..."""
    from grouped_lm.data import prepare_data
    from grouped_lm.display import PrepareDisplay

    from .hydra_entry import HydraFlags, compose_jobs, explained

    flags = HydraFlags()
    with explained(overrides or [], flags):
        ((config, _),) = compose_jobs(overrides or [], flags)
    started = time.perf_counter()
    with PrepareDisplay() as display:
        corpus = prepare_data(config.data, config.tokenizer, display.progress)
    if as_json:
        print(json.dumps({"train": corpus.train.manifest, "valid": corpus.valid.manifest}, indent=2))
        return
    seconds = time.perf_counter() - started
    for split, tokens in (("train", corpus.train), ("valid", corpus.valid)):
        manifest = tokens.manifest
        print(
            f"{split}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens, "
            f"{manifest['bytes']:,} bytes in {tokens.folder}"
        )
    print(f"ready in {seconds:.1f} s; a second time is reading a manifest")
