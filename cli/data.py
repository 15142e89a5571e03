"""`gvc data`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigDir, Json, Overrides, check_file, starting

data_app = typer.Typer(
    no_args_is_help=True,
    help="Prepare text for training.\n\nExample: gvc data prepare data=text data.train=train.txt data.valid=valid.txt",
)


@data_app.command()
def prepare(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """Tokenize a text into the cache.

    Example: gvc data prepare data=text data.train=train.txt data.valid=valid.txt
    """
    with starting():
        from grouped_lm.data import prepare_data

        from .compose.compose import HydraFlags
        from .compose.run import compose_one

    config = compose_one(overrides or [], HydraFlags(config_dir=config_dir))
    started = time.perf_counter()
    corpus = prepare_data(config.data, config.tokenizer)
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


@data_app.command()
def order(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures as CSV.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how well token ids are sorted by frequency in the training text.

    Example: gvc data order data=text data.train=train.txt data.valid=valid.txt
    """
    with starting():
        from grouped_lm.data import build_tokenizer, prepare_split
        from grouped_lm.grouping.merge_order import FIRST, measure_merge_order
        from grouped_lm.system.files import write_text
        from grouped_lm.system.tables import csv_text

        from .compose.compose import HydraFlags
        from .compose.run import compose_one

    check_file("--out", out)
    config = compose_one(overrides or [], HydraFlags(config_dir=config_dir))
    counts = prepare_split(config.data, config.tokenizer, "train").counts()
    counts[build_tokenizer(config.tokenizer, config.data).eot_id] = 0
    figures = {"data": config.data.name, "tokenizer": config.tokenizer.label}
    figures |= measure_merge_order(counts, min(FIRST, len(counts)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, csv_text([figures]))
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    print(
        f"{figures['data']}: rank correlation {figures['rank_correlation']:.3f} ({figures['low']:.3f} to "
        f"{figures['high']:.3f}) over {figures['ids']:,} of {figures['vocab_size']:,} ids; the first "
        f"{figures['first']:,} ids hold {figures['share_of_first']:.1%} of {figures['tokens']:,} tokens, the most "
        f"frequent ones {figures['share_of_top']:.1%}"
    )


@data_app.command()
def halve(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A file, folder or glob of .txt, .jsonl, .parquet.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for NAME-a.txt and NAME-b.txt.")],
    text_field: Annotated[str, typer.Option(metavar="NAME", help="The column of .jsonl and .parquet.")] = "text",
) -> None:
    """Split a validation text in two halves by document.

    Choose heads by one half, and report on the other.

    Example: gvc data halve valid.txt --out halves
    """
    with starting():
        from grouped_lm.data import halve

    (chosen_by, count), (reported, others) = halve(text, out, text_field)
    print(f"{chosen_by}: {count:,} documents, for data.valid")
    print(f"{reported}: {others:,} documents, for gvc leaderboard --report")


@data_app.command()
def overlap(
    train: Annotated[str, typer.Argument(metavar="TRAIN", help="The training text: a file, folder or glob.")],
    valid: Annotated[str, typer.Argument(metavar="VALID", help="The validation text, in the same way.")],
    n: Annotated[int, typer.Option("--n", metavar="WORDS", min=1, help="Words of an n-gram.")] = 8,
    at_most: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Documents with a larger overlap are near-duplicates.")
    ] = 0.2,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the other documents there.")] = None,
    text_field: Annotated[str, typer.Option(metavar="NAME", help="The column of .jsonl and .parquet.")] = "text",
    as_json: Json = False,
) -> None:
    """Measure how much of a validation text is in the training text too.

    It counts n-grams of words that both have. Evaluate a run without near-duplicates: gvc eval RUN data.valid=FILE

    Example: gvc data overlap train.txt valid.txt --out fresh.txt
    """
    with starting():
        from grouped_lm.data.overlap import overlap_of_files
        from grouped_lm.data.split import write_documents
        from grouped_lm.errors import ConfigError, DataError

    if out is not None and out.suffix.lower() != ".txt":
        raise ConfigError(
            f"--out must end in .txt, got {out}: documents are written with a border of .txt between them"
        )
    check_file("--out", out)
    found = overlap_of_files(train, valid, n, text_field)
    fresh = found.fresh(at_most)
    if out is not None:
        if not fresh:
            raise DataError(f"no document is left for {out}: give a larger --at-most")
        write_documents({out: fresh})
    documents = len(found.documents)
    if as_json:
        figures = {"n": n, "share": found.total, "documents": documents, "at_most": at_most, "fresh": len(fresh)}
        print(json.dumps(figures | {"shares": found.shares.tolist()}, indent=2))
        return
    print(f"{valid}: {found.total:.1%} of its n-grams of {n} words are in {train} too")
    print(f"{documents - len(fresh):,} of {documents:,} documents have more than {100 * at_most:g}%")
    if out is not None:
        print(f"{out}: the {len(fresh):,} others")
