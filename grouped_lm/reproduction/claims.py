"""The claims, read from `conf/reproduction/claims.yaml`: the paper's claims, open questions and checks, as data."""

from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any

import yaml

from grouped_lm.bench.variants import load_variant
from grouped_lm.errors import ConfigError

KINDS = ("claim", "question", "check")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to build the last layer, as runs and benches name it."""

    key: str
    name: str
    bench: str | None
    """Its name in the rows of `gvc bench`, None where no suite measures it."""
    match: dict[str, Any]
    """Column of runs.csv -> value, or a list of values; `group_size: sqrt` is round(sqrt V)."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence that runs can decide."""

    id: str
    kind: str
    """`claim` (the paper says it), `question` (it leaves it open) or `check` (it asks for it, or we do)."""
    quote: str | None
    source: str
    says: str
    measured: str
    runs: list[str]
    """Names of steps."""
    rule: str
    threshold: float | None
    ours: bool
    options: dict[str, Any] = field(default_factory=dict)
    """What the rule takes besides, `with` in the file."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The whole file."""

    paper: dict[str, str]
    methods: dict[str, Method]
    claims: list[Claim]


def load_claims(text: str | None = None) -> Claims:
    """Return the claims of `text`, by default those of `conf/reproduction/claims.yaml`.

    Raises:
        ConfigError: an entry without one of its fields, with another one, or of an unknown kind; a name given twice.
    """
    source = (
        (files("grouped_lm.conf") / "reproduction" / "claims.yaml").read_text(encoding="utf-8")
        if text is None
        else text
    )
    values = yaml.safe_load(source)
    methods = {key: _method(key, **entry) for key, entry in values["methods"].items()}
    claims = [_parse(entry) for entry in values["claims"]]
    ids = [claim.id for claim in claims]
    if len(set(ids)) < len(ids):
        raise ConfigError(f"claims.yaml names {next(i for i in ids if ids.count(i) > 1)} twice")
    return Claims(paper=values["paper"], methods=methods, claims=claims)


def _method(key: str, variant: str, match: list[str], grouping: str | None = None, **names: str | None) -> Method:
    """Return the method that is a variant, by the settings of it that a run must share."""
    chosen = load_variant(variant, f"claims.yaml: {key}")
    config = chosen.head_config()
    values = {"head": chosen.head["name"]}
    for setting in match:
        if setting == "grouping":
            values[setting] = grouping or chosen.grouping
        elif setting == "group_size":
            values[setting] = config.group_size or "sqrt"
        else:
            values[f"head.{setting}"] = getattr(config, setting)
    return Method(key=key, match=values, **{"name": chosen.label, "bench": chosen.label} | names)  # type: ignore[arg-type]


def _parse(entry: dict[str, Any]) -> Claim:
    known = {f.name for f in fields(Claim)} - {"options"} | {"with"}
    if set(entry) != known:
        odd = ", ".join(sorted(set(entry) ^ known))
        raise ConfigError(f"claims.yaml: {entry.get('id', entry)} must have exactly its fields, see to {odd}")
    if entry["kind"] not in KINDS:
        raise ConfigError(f"claims.yaml: {entry['id']} must be one of {', '.join(KINDS)}, got {entry['kind']!r}")
    others = {key: value for key, value in entry.items() if key != "with"}
    return Claim(**others, options=entry["with"])
