"""`gvc`: one file per command. Commands import torch and Hydra when they run, so that `gvc --help` is fast."""

import atexit
import contextlib
import gc
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer

from .advise import advise
from .bench import bench
from .config import config
from .data import data_app
from .demo import demo
from .diff import diff
from .doctor import doctor
from .eval import evaluate
from .export import export, import_model
from .options import expand_home
from .plan import plan
from .plot import plot
from .reproduce import report, reproduce
from .resume import resume
from .runs import dashboard, leaderboard, list_runs
from .sample import sample
from .sweep import sweep
from .train import train

app = typer.Typer(
    name="gvc",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # wraps paragraphs at the width of the terminal
)
app.command("demo")(demo)
app.command("train")(train)
app.command("resume")(resume)
app.command("plan")(plan)
app.command("advise")(advise)
app.command("bench")(bench)
app.command("eval")(evaluate)
app.command("sample")(sample)
app.command("export")(export)
app.command("import")(import_model)
app.command("sweep")(sweep)
app.command("ls")(list_runs)
app.command("plot")(plot)
app.command("diff")(diff)
app.command("leaderboard")(leaderboard)
app.command("reproduce")(reproduce)
app.command("report")(report)
app.command("dashboard")(dashboard)
app.add_typer(data_app, name="data")
app.command("config")(config)
app.command("doctor")(doctor)

RENAMED_COMMANDS = {"ladder": "leaderboard"}
"""Names of the release before, answered with the new name."""
TEXTS = ("--prompt", "--stop")
"""Options whose value is any text."""
UsageError: Any = typer.BadParameter.__mro__[1]  # Typer carries its own click and exports no other name for it


def print_version(asked: bool) -> None:
    """Print the version of the package and end."""
    if asked:
        print(f"gvc {metadata.version('grouped-lm')}")
        raise typer.Exit


@app.callback(help="Train and measure small language models with compressed output layers (arXiv 2411.06371).")
def gvc(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for every error.")] = False,
) -> None:
    """Declare the options of `gvc` itself. `main` reads --debug, which may stand after a command too."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `gvc` and exit: 0 done, 1 failed, 2 wrong usage or config, 3 data or run folder, as `errors` has them."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own remarks are not for our users
    # large tensors in pages of 2 MiB: 1 to 3 % of a step on a CPU; torch reads this when it makes its first tensor
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.raiseExceptions = False  # `gvc train --info all | head` would print a traceback per line after the tenth
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:
        words.remove("--debug")
        os.environ["GVC_DEBUG"] = "1"
    if os.environ.get("COMP_WORDS", "").endswith("="):  # bash ends a word at =: complete the empty one after it
        os.environ["COMP_CWORD"] = str(int(os.environ.get("COMP_CWORD", 0)) + 1)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if "--info" in words:
        index = words.index("--info")
        if index + 1 == len(words) or "=" in words[index + 1]:
            words[index] = "--info=all"  # Hydra's --info may have no value, Typer's options need one
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # characters that the terminal lacks become ?
    from grouped_lm.system.signals import exit_on_sigterm

    atexit.register(gc.freeze)  # else the interpreter looks through a million objects at the end, for a second
    open_closed_streams()
    with exit_on_sigterm():  # during training its own handler saves first
        if not os.environ.get("_GVC_COMPLETE"):
            from grouped_lm.system.phases import show_phases

            show_phases()
        code = _run(words)
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        refuse_empty(words)
        words = [expand_option(word) for word in words]
        if words and words[0] in RENAMED_COMMANDS:
            return _fail(f"gvc {words[0]} is now gvc {RENAMED_COMMANDS[words[0]]}", 2)
        code = app(words, standalone_mode=False) or 0
        _flush()
        return code
    except KeyboardInterrupt:
        print("gvc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1  # the reader of our output has closed it
    except typer.Exit as error:
        return error.exit_code
    except UsageError as error:
        return _fail(_usage_line(error), 2)
    except typer.Abort:
        return _fail("aborted", 2)
    except Exception as error:
        if os.environ.get("GVC_DEBUG"):
            raise
        from grouped_lm.errors import GvcError

        if isinstance(error, GvcError):
            return _fail(str(error), error.exit_code)
        if isinstance(error, OSError) and (line := _disk_line(error)):
            return _fail(line, 4)
        return _fail(f"{type(error).__name__}: {error} (a defect of gvc; --debug shows where)", 1)


def refuse_empty(words: Sequence[str]) -> None:
    """Raise `ConfigError` for an empty argument, such as an unset shell variable: a path would be this folder."""
    from grouped_lm.errors import ConfigError

    for before, word in zip(("gvc", *words), words, strict=False):
        name = word[:-1] if word.startswith("--") and word.endswith("=") else before
        if (not word or name != before) and name not in TEXTS:
            raise ConfigError(f"what follows {name} is empty: give it a value, or leave it out")


def expand_option(word: str) -> str:
    """Return `--out=~/x` with the home folder in place of `~`. Texts such as --prompt stay."""
    name, equals, value = word.partition("=")
    return f"{name}={expand_home(value)}" if equals and name.startswith("--") and name not in TEXTS else word


def open_closed_streams() -> None:
    """Open the null device in place of closed standard streams. Else a file opened later would be taken for them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _usage_line(error: Any) -> str:
    """Return Typer's message, with the value that it is about."""
    message = error.format_message()  # `message` is empty where an argument is missing
    if not message:
        return f"name a command of {error.ctx.command_path}, one of those above"
    if re.fullmatch("No such command '[^']*'[.]", message):  # none has a similar name, else Typer says it
        return f"{message[:-1]}; there are {', '.join(error.ctx.command.commands)}"
    given = [found["input"] for found in getattr(error.__cause__, "errors", list)()]
    return f"{message}, got {given[0]!r}" if given else message


def _disk_line(error: OSError) -> str | None:
    """Return one line for an error of the file system, None for an error of something else."""
    from grouped_lm.errors import is_full, why_refused

    place = error.filename2 or error.filename
    if place is None:
        if not is_full(error):
            return None
        with contextlib.suppress(OSError):
            _flush()
    why, advice = why_refused(error)
    return f"cannot read or write {place or 'the output'}: {why}; {advice}"


def _flush() -> None:
    """Print the rest of the output. If that fails, drop it, since Python would fail again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str, code: int) -> int:
    print("gvc: error: " + " ".join(message.split()), file=sys.stderr)
    return code
