"""`gvc sample`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .eval import RunArgument, SavedOverrides


def sample(
    run: RunArgument,
    overrides: SavedOverrides = None,
    prompt: Annotated[str, typer.Option(help="How the story begins; empty starts at end-of-text, - reads stdin.")] = "",
    prompt_file: Annotated[Path | None, typer.Option(help="A UTF-8 file with how the story begins.")] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Stories to write.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens only.")] = None,
    top_p: Annotated[
        float, typer.Option(max=1.0, help="Draw from the fewest tokens that have this probability together, in (0, 1].")
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Draw from tokens with this share of the likeliest one's probability."),
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(min=1.0, help="Multiply the log-probabilities of tokens already there.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed writes the same stories.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON line per story on stdout: text, ids, log-probabilities.")
    ] = False,
) -> None:
    """Write stories with a run's last checkpoint.

    Cuts (--top-k, --top-p, --min-p) go by the model's own probabilities; the temperature works on what they leave.
    """
    from grouped_lm.generate import Sampling, generate_texts
    from grouped_lm.heads.decoding.truncation import Truncation
    from grouped_lm.runs.load import load_config

    from .compose.run import override_saved

    truncation = Truncation(top_k=top_k, top_p=top_p, min_p=min_p)
    sampling = Sampling(temperature=temperature, truncation=truncation, repetition_penalty=repetition_penalty)
    config = override_saved(load_config(run), overrides or [])
    begin = read_prompt(prompt, prompt_file)
    streams = not as_json and num_samples == 1 and sys.stdout.isatty()

    def show(piece: str) -> None:
        print(piece, end="", flush=True)

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


def read_prompt(prompt: str, file: Path | None) -> str:
    """Return the text of the flag, of the file, or of stdin.

    Raises:
        ConfigError: both are given.
        DataError: it cannot be read as UTF-8, or stdin is closed.
    """
    from grouped_lm.errors import ConfigError, DataError

    if prompt and file is not None:
        raise ConfigError("--prompt or --prompt-file, not both")
    if prompt == "-" and sys.stdin is None:
        raise DataError("--prompt - reads stdin, and it is closed: give the text, or --prompt-file FILE")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8")
        return sys.stdin.buffer.read().decode("utf-8") if prompt == "-" else prompt
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the prompt from {file or 'stdin'}: {error}") from error
