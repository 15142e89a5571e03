"""The reference pages, made from the code: commands, configuration keys, Python API."""

import html
import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer.main
from grouped_lm.cli.main import app

from grouped_lm.heads import HEADS
from grouped_lm.runs.schema import list_keys, list_parts, show_value

NOTE = "This page is generated from the code at every build.\n\n"


def reference_pages() -> dict[str, str]:
    """Return the generated pages by their place in docs/."""
    return {"reference/cli.md": cli_page(), "reference/config.md": config_page(), "reference/api.md": api_page()}


def commands(command: Any = None, name: str = "gvc") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the typer object of every command."""
    command = typer.main.get_command(app) if command is None else command
    for word, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from commands(inner, f"{name} {word}")
        elif not inner.hidden:
            yield f"{name} {word}", inner


def cli_page() -> str:
    """Return the page of all commands."""
    text = (
        f"# Commands\n\n{NOTE}`gvc --debug COMMAND` shows tracebacks. `gvc --install-completion` sets up the shell.\n\n"
    )
    for name, command in commands():
        usage = [name, "[OPTIONS]", *[_argument(p) for p in command.params if _is_argument(p)]]
        text += f"## {name}\n\n{_paragraphs(command.help)}\n\n```text\n{' '.join(usage)}\n```\n\n"
        rows = [
            f"| {_code(_argument(param) if _is_argument(param) else _option(param))} "
            f"| {_default(param)} | {_cell(param.help)} |\n"
            for param in command.params
            if param.name != "help" and not getattr(param, "hidden", False)
        ]
        if rows:
            text += "| argument or option | default | meaning |\n| --- | --- | --- |\n" + "".join(rows) + "\n"
    return text


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _argument(param: Any) -> str:
    name = param.metavar or param.name.upper()
    return name if param.required or name.startswith("[") else f"[{name}]"


def _option(param: Any) -> str:
    return ", ".join(param.opts) + (f" {param.metavar}" if param.metavar else "")


def _code(text: str) -> str:
    """Return code for a cell of a table. In backticks, an escaped bar would show its backslash."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _default(param: Any) -> str:
    if getattr(param, "is_flag", False) or param.default in (None, "", [], ()) or callable(param.default):
        return "-"
    return f"`{getattr(param.default, 'value', param.default)}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def _paragraphs(text: str | None) -> str:
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text or "").replace("\b", "").replace("\f", ""))
    return "\n\n".join(
        re.sub(r"^Example: (.*)", r"Example: `\1`", _cell(block).replace("\\[", "[")) for block in blocks
    )


def config_page() -> str:
    """Return the page of all configuration keys, which `gvc config` prints too."""
    text = f"# Configuration keys\n\n{NOTE}[Configuration](../guide/configuration.md) says how to set a key.\n\n"
    for part in list_parts():
        title = f"`{part.label}`" if part.label else "Top level"
        text += f"## {title}\n\n{_paragraphs((part.schema.__doc__ or '').strip())}\n\n"
        text += "| key | type | default | unit | allowed | meaning |\n| --- | --- | --- | --- | --- | --- |\n"
        for key in list_keys(part):
            cells = (f"`{key.path}`", key.kind, f"`{show_value(key.default)}`", key.unit, key.limits, key.meaning)
            text += f"| {' | '.join(map(_cell, cells))} |\n"
        text += "\n"
    return text


def api_page() -> str:
    """Return the page of the public Python names."""
    parts = {
        "Heads": ["grouped_lm.heads.build_head", "grouped_lm.heads.HeadLoss", "grouped_lm.heads.Head"],
        "The nine heads": [f"grouped_lm.heads.{kind.__name__}" for _, kind in HEADS.values()],
        "Groupings": ["grouped_lm.grouping.build_grouping", "grouped_lm.grouping.Grouping"],
        "Trained models": ["grouped_lm.hf.compress.compress"],
    }
    text = f"# Python API\n\n{NOTE}"
    for title, names in parts.items():
        text += f"## {title}\n\n"
        for name in names:
            options = "    options:\n      members: false\n" if title == "The nine heads" else ""
            text += f"::: {name}\n{options}\n"
    return text
