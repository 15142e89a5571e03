"""The reference pages, made from the code: commands, configuration keys, Python API."""

import ast
import html
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, get_origin

import typer.main
from grouped_lm.cli.main import app

from grouped_lm.config import (
    Config,
    EvalConfig,
    JudgeConfig,
    ModelConfig,
    TokenizerConfig,
    TrackingConfig,
    TrainConfig,
    format_range,
)
from grouped_lm.grouping import GROUPINGS
from grouped_lm.heads import HEADS
from grouped_lm.optim import OPTIMIZERS
from grouped_lm.prior.config import KneserNeyConfig

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
    """Return the page of all configuration keys."""
    text = f"# Configuration keys\n\n{NOTE}[Configuration](../guide/configuration.md) says how to set a key.\n\n"
    for path, schema in schemas():
        title = f"`{path}`" if path else "Top level"
        text += f"## {title}\n\n{_paragraphs((schema.__doc__ or '').strip())}\n\n"
        text += "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
        part = path.split("=")[0].split(" ")[0]
        for key, kind, default, meaning in keys(schema):
            text += f"| `{part}{'.' if part else ''}{key}` | {kind} | {default} | {meaning} |\n"
        text += "\n"
    return text


def schemas() -> list[tuple[str, type]]:
    """Return the schema of every part of a config, with its path: `train`, `head=dense`."""
    from grouped_lm.data import sources

    listed: list[tuple[str, type]] = [("", Config), ("model", ModelConfig)]
    listed += [(f"head={name}", schema) for name, (schema, _) in HEADS.items()]
    listed.append(("head=kneser_ney", KneserNeyConfig))
    listed += [(f"grouping={name}", kind.schema) for name, kind in GROUPINGS.items()]
    registry = getattr(sources, "SOURCES", None)
    if registry is None:
        listed.append(("data", type(Config().data)))
    else:
        listed += [(f"data (source: {name})", entry[0]) for name, entry in registry.items()]
    listed.append(("tokenizer", TokenizerConfig))
    listed += [(f"optim={name}", schema) for name, (schema, _) in OPTIMIZERS.items()]
    return [*listed, ("train", TrainConfig), ("tracking", TrackingConfig), ("eval", EvalConfig), ("judge", JudgeConfig)]


def keys(schema: type) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of the fields of a dataclass; fields that hold a schema are left out."""
    meanings = _field_docs(schema)
    for f in fields(schema):  # type: ignore[arg-type]
        if schema is Config and f.name not in ("name", "seed", "init_from"):
            continue
        default = (
            f.default if f.default is not MISSING else f.default_factory() if f.default_factory is not MISSING else ""
        )  # type: ignore[misc]
        meaning = meanings.get(f.name, "The name of this choice." if f.name == "name" else "")
        if "range" in f.metadata:
            meaning += f" In {format_range(*f.metadata['range'])}."
        yield f.name, _type(f.type), f"`{_yaml(default)}`", meaning.strip()


def _type(kind: Any) -> str:
    name = str(kind) if get_origin(kind) or not hasattr(kind, "__name__") else kind.__name__
    return name.replace("typing.", "").replace("|", "or").replace("None", "null").replace("Any", "text or list")


def _yaml(value: Any) -> str:
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else str(value)


def _field_docs(schema: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass and of its bases."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
                found[field.target.id] = _cell(text)
    return found


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
