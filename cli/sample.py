"""`gvc sample`."""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .options import SavedOverrides, complete_run, starting


def sample(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run folder, as gvc train prints it.", autocompletion=complete_run),
    ] = None,
    overrides: SavedOverrides = None,
    example: Annotated[
        bool, typer.Option("--example", help="Use a small model that comes with gvc; RUN may be dense or shortlist.")
    ] = False,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The beginning of the story; - reads stdin.")] = "",
    prompt_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file with the beginning.")] = None,
    num_samples: Annotated[int, typer.Option(min=1, metavar="N", help="Number of stories.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Most tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, metavar="T", help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, metavar="K", help="Draw from the K likeliest tokens.")] = None,
    top_p: Annotated[
        float, typer.Option(max=1.0, metavar="P", help="Draw from the fewest tokens of probability P, in (0, 1].")
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="P", help="Draw from tokens above P times the best one."),
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(min=1.0, metavar="X", help="Multiply the log-probabilities of tokens in the text.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text. Repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON per story.")] = False,
) -> None:
    """Write stories with the last checkpoint of a run.

    --repetition-penalty comes first, then --top-k, --top-p and --min-p truncate, then the temperature is applied.
    `gvc sample --example` needs no training.

    Example: gvc sample runs/my-run --prompt "Once upon a time"
    """
    # Long because each option is an argument with its help text.
    with starting():
        from grouped_lm.config import check_range
        from grouped_lm.generate import Sampling, generate_texts
        from grouped_lm.heads.decoding.truncation import Truncation
        from grouped_lm.runs.load import load_config

        from .compose.run import override_saved

    check_range("--seed", seed, 0, 2**63 - 1)
    truncation = Truncation(top_k=top_k, top_p=top_p, min_p=min_p)
    sampling = Sampling(temperature=temperature, truncation=truncation, repetition_penalty=repetition_penalty)
    run = find_run(run, example)
    config = override_saved(load_config(run), overrides or [])
    begin = read_prompt(prompt, prompt_file)
    streams = not as_json and num_samples == 1 and sys.stdout.isatty()

    show = partial(print, end="", flush=True)
    if streams:
        show(begin)
    texts = generate_texts(
        run,
        config,
        prompt=begin,
        num_samples=num_samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stops=stop,
        note=lambda text: typer.echo(f"gvc: note: {text}", err=True),
        **({"show": show} if streams else {}),
    )
    for index, text in enumerate(texts):
        if as_json:
            print(json.dumps({"index": index, **asdict(text)}), flush=True)
        else:
            print("" if streams else ("" if index == 0 else "\n---\n") + begin + text.text, flush=True)


def find_run(run: Path | None, example: bool) -> Path:
    """Return the run folder, or with `example` that of a model in the package, by default the one with `shortlist`."""
    from importlib.resources import files

    from grouped_lm.config import check_choice
    from grouped_lm.errors import ConfigError

    if not example:
        if run is None:
            raise ConfigError("name a run folder, as `gvc train` printed it, or give --example")
        return run
    name = str(run or "shortlist")
    check_choice("RUN with --example", name, ("shortlist", "dense"))
    return Path(str(files("grouped_lm") / "examples")) / name


def read_prompt(prompt: str, file: Path | None) -> str:
    """Return the prompt from the option, the file, or stdin."""
    from grouped_lm.errors import ConfigError, DataError

    if prompt and file is not None:
        raise ConfigError("--prompt or --prompt-file, not both")
    if prompt == "-" and sys.stdin is None:
        raise DataError("--prompt - reads stdin, and it is closed: give the text, or --prompt-file FILE")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8")
        return sys.stdin.buffer.read().decode("utf-8") if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise DataError(
            f"the prompt from {file or 'stdin'} is not UTF-8 at byte {error.start}; convert it, for instance with iconv"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot read the prompt from {file or 'stdin'}: {error.strerror}; give a text file, or --prompt TEXT"
        ) from error
