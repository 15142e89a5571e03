"""`gvc advise`."""

import json
import textwrap
import time
from pathlib import Path
from typing import Annotated

import typer

from .options import DEVICE_HELP, ConfigDir, ConfigName, Json, Overrides, complete_device, say, starting


def advise(
    overrides: Overrides = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="Minutes for a screen of quality; without, there is none.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Screen to so many steps at most; alone, without a limit of time.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Variants to screen instead of the usual ones.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help=DEVICE_HELP, autocompletion=complete_device)] = "cpu",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the runs of the screen.")] = None,
    as_json: Json = False,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "config",
) -> None:
    """Say which head to take for a text.

    Prints figures of the text, memory and speed of every head, and one sentence. With --minutes it also trains the
    usual heads for a while, on the same tokens, and ranks them by loss. The best half continues after 1/8, 1/4 and 1/2
    of the steps of a full run. The ranking estimates that of full runs by validation loss. A lead within the noise
    between two seeds is a tie, and the faster head is first. Ctrl-C loses nothing: the same command continues.

    The overrides are those of gvc train; a full run is experiment=main_job, 400 steps, if they do not say more.

    Example: gvc advise data=text data.train=train.txt data.valid=valid.txt --minutes 5
    """
    started = time.monotonic()
    with starting():
        from grouped_lm.advise.advice import Advice
        from grouped_lm.config import check_range
        from grouped_lm.system.console import print_table, terminal_width

        from .compose.compose import HydraFlags
        from .compose.run import compose_one

    check_range("--minutes", minutes, 0.01, 10**6)
    check_range("--steps", steps, 1, 10**9)
    words = overrides or []
    if not any(word.lstrip("+").startswith("experiment=") for word in words):
        words = ["experiment=main_job", *words]
    config = compose_one(words, HydraFlags(config_dir=config_dir, config_name=config_name))

    advice = Advice(config, device, [name.strip() for name in (heads or "").split(",") if name.strip()], say)
    if not as_json:
        print_table(advice.figures.table(config.data.name, config.train.max_steps).terminal())
        print_table(advice.costs_table().terminal())
    try:
        if minutes or steps:
            advice.screen(out, None if minutes is None else started + 60 * minutes, steps)
    finally:  # after Ctrl-C too, with what is known
        if as_json:
            print(json.dumps(advice.values(), indent=2))
        else:
            if advice.verdict is not None:
                print_table(advice.screen_table().terminal())
            print(textwrap.fill(advice.sentence(), terminal_width() or 10**6))
