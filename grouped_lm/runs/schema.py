"""The keys of a config: default, unit, range and meaning, read from the dataclasses of the schema."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, get_origin

from grouped_lm.config import (
    Config,
    EvalConfig,
    JudgeConfig,
    ModelConfig,
    PriorConfig,
    TokenizerConfig,
    TrackingConfig,
    TrainConfig,
    format_range,
)
from grouped_lm.data.sources import SOURCES
from grouped_lm.grouping import GROUPINGS
from grouped_lm.heads import HEADS
from grouped_lm.optim import OPTIMIZERS
from grouped_lm.prior.config import KneserNeyConfig
from grouped_lm.runs.identity import is_identity


@dataclass(frozen=True, kw_only=True)
class Part:
    """A dataclass of the schema. `choice` is its name, where several dataclasses can be this part of a config."""

    path: str
    """Such as `head`, "" for the top level."""
    choice: str
    schema: type

    @property
    def label(self) -> str:
        """Return a name such as `head=dense` or `train`."""
        by = " with data.source=" if self.path == "data" else "="
        return f"{self.path}{by}{self.choice}" if self.choice else self.path


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a config."""

    path: str
    kind: str
    default: Any
    unit: str
    limits: str
    """Such as `[0, 1]`, `one of ddp, fsdp2`, or "" where every value is allowed."""
    meaning: str
    is_free: bool
    """Whether it may change between a run and its continuation."""


def list_parts() -> list[Part]:
    """Return every part of a config, in the order of the reference page."""
    named: dict[str, dict[str, type]] = {
        "head": {name: schema for name, (schema, _) in HEADS.items()} | {"kneser_ney": KneserNeyConfig},
        "grouping": {name: kind.schema for name, kind in GROUPINGS.items()},
        "data": {name: schema for name, (schema, _) in SOURCES.items()},
        "optim": {name: schema for name, (schema, _) in OPTIMIZERS.items()},
    }
    single = {"": Config, "model": ModelConfig, "tokenizer": TokenizerConfig, "train": TrainConfig}
    single |= {"tracking": TrackingConfig, "eval": EvalConfig, "judge": JudgeConfig, "prior": PriorConfig}
    order = (
        "",
        "model",
        "head",
        "grouping",
        "data",
        "tokenizer",
        "optim",
        "train",
        "prior",
        "tracking",
        "eval",
        "judge",
    )
    return [
        Part(path=path, choice=choice, schema=schema)
        for path in order
        for choice, schema in (named[path] if path in named else {"": single[path]}).items()
    ]


def list_keys(part: Part) -> Iterator[Key]:
    """Yield the keys of a part; the fields of `Config` that hold other parts are left out."""
    meanings = field_docs(part.schema)
    for spec in fields(part.schema):
        if part.schema is Config and spec.name not in ("name", "seed", "init_from"):
            continue
        metadata, default = spec.metadata, spec.default
        if default is MISSING:
            default = spec.default_factory() if spec.default_factory is not MISSING else ""
        limits = f"one of {', '.join(metadata['choices'])}" if metadata.get("choices") else ""
        yield Key(
            path=f"{part.path}.{spec.name}".lstrip("."),
            kind=_kind(spec.type),
            default=default,
            unit=metadata.get("unit", ""),
            limits=format_range(*metadata["range"]) if "range" in metadata else limits,
            meaning=meanings.get(spec.name, "The name of this choice." if spec.name == "name" else ""),
            is_free=part.path in ("tracking", "eval", "judge") or not is_identity(spec),
        )


def show_value(value: Any) -> str:
    """Return a value as YAML writes it, on one line."""
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else str(value)


def _kind(kind: Any) -> str:
    name = str(kind) if get_origin(kind) or not hasattr(kind, "__name__") else kind.__name__
    return name.replace("typing.", "").replace("|", "or").replace("None", "null").replace("Any", "text or list")


@cache
def field_docs(schema: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass and of its bases, each on one line."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
                found[field.target.id] = " ".join(text.split())
    return found
