"""`gvc sample`."""

import json
from typing import Annotated

import typer

from .eval import RunArgument, SavedOverrides


def sample(
    run: RunArgument,
    overrides: SavedOverrides = None,
    prompt: Annotated[str, typer.Option(help="How the story begins; empty starts at end-of-text.")] = "",
    num_samples: Annotated[int, typer.Option(min=1, help="Stories to write.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same stories.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line per story on stdout.")] = False,
) -> None:
    """Write stories with a run's last checkpoint."""
    from grouped_lm.generate import generate_texts
    from grouped_lm.run_folder import RunFolder

    from .hydra_entry import override_saved

    config = override_saved(RunFolder(run).read_config(), overrides or [])
    texts = generate_texts(
        run,
        config,
        prompt=prompt,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    for index, text in enumerate(texts):
        if as_json:
            print(json.dumps({"index": index, "prompt": prompt, "text": text}), flush=True)
        else:
            print(("" if index == 0 else "\n---\n") + prompt + text, flush=True)
