"""The identity of a run: the settings that decide what it computes, and a hash of them.

A field of the schema belongs to the identity unless it is declared with `grouped_lm.config.free`.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import Field, asdict, fields, is_dataclass, replace
from typing import Any

from grouped_lm.config import Config, DataConfig
from grouped_lm.data.sources import SOURCES


def iter_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, "Field[Any]", Any]]:
    """Yield the path, the dataclass field and the value of every setting of a config, or of a part of it.

    A part that is free as a whole, such as `tracking`, is one setting. Each path begins with `prefix`.
    """
    for spec in fields(config):
        value = getattr(config, spec.name)
        if is_dataclass(value) and is_identity(spec):
            yield from iter_settings(value, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", spec, value


def is_identity(spec: "Field[Any]") -> bool:
    """Return whether a field of the schema is part of a run's identity."""
    return bool(spec.metadata.get("identity", True))


def _is_absent(spec: "Field[Any]", value: Any) -> bool:
    """Return whether a field has the value that stands for its absence in runs that are older than it."""
    return bool(spec.metadata.get("late")) and value == spec.default


def config_identity(config: Config) -> dict[str, Any]:
    """Return every setting that decides what a run computes, flat: {"optim.lr": 0.001, ...}."""
    if type(config.data) is DataConfig:  # it means its source with default options, and must hash like that one
        schema, _ = SOURCES[config.data.source]
        config = replace(config, data=schema(**asdict(config.data)))
    settings = ((path, spec, value) for path, spec, value in iter_settings(config) if is_identity(spec))
    return _one_batch({path: value for path, spec, value in settings if not _is_absent(spec, value)})


def _one_batch(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the identity with the batch of a step instead of its parts, if `train.auto_micro_batch` chooses these."""
    if not identity.get("train.auto_micro_batch"):
        return identity
    parts = ("train.micro_batch_size", "train.grad_accum_steps")
    return {key: value for key, value in identity.items() if key not in parts} | {
        "train.batch": math.prod(identity[key] for key in parts)
    }


def saved_identity(values: dict[str, Any], config: Config) -> dict[str, Any]:
    """Return the identity in a saved config, given as plain values, to be compared with that of `config`.

    The saved config need not fit the schema: the fields that are free in `config` are left out, all others are kept.
    """
    specs = {path: spec for path, spec, _ in iter_settings(config)}
    free = {path for path, spec in specs.items() if not is_identity(spec)} | {"schema_version"}

    def flatten(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            path = f"{prefix}{key}"
            if path not in free:
                yield from flatten(value, f"{path}.") if isinstance(value, dict) else [(path, value)]

    flat = flatten(values, "")
    return _one_batch({path: value for path, value in flat if path not in specs or not _is_absent(specs[path], value)})


def config_hash(config: Config) -> str:
    """Return a sha256 of the identity: two configs with the same hash describe the same run."""
    return hashlib.sha256(json.dumps(config_identity(config), sort_keys=True).encode()).hexdigest()


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return "optim.lr: 0.001 -> 0.5, ..." for every key in which two dicts differ, "" if there is none.

    Of a part with another name, such as head.name, only the name: its other settings are those of another schema.
    """
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    names = {key.rpartition(".")[0]: key for key in changed if key.endswith((".name", ".source"))}
    shown = [key for key in changed if names.get(key.rpartition(".")[0], key) == key]
    return ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in shown)
