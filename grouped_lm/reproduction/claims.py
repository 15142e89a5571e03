"""The claims, read from `conf/reproduction/claims.yaml`: the paper's claims, open questions and checks, as data."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from grouped_lm.bench.variants import load_variant
from grouped_lm.config import check_choice, parse_fields
from grouped_lm.errors import ConfigError

KINDS = ("claim", "question", "check")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to build the output layer, and how runs and benches name it."""

    key: str
    name: str
    bench: str | None
    """Its name in the rows of `gvc bench`; None if no suite measures it."""
    match: dict[str, Any]
    """Column of runs.csv -> value. `group_size: sqrt` means round(sqrt V)."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that runs can confirm or refute."""

    id: str
    kind: str
    """`claim` (the paper says it), `question` (the paper leaves it open) or `check` (the paper or we ask for it)."""
    quote: str | None
    source: str
    says: str
    measured: str
    runs: list[str]
    """Names of steps."""
    rule: str
    threshold: float | None
    ours: bool
    """Whether the rule is also asked about our best head."""
    options: dict[str, Any]
    """Other settings of the rule, `with` in the file."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The content of claims.yaml."""

    paper: dict[str, str]
    methods: dict[str, Method]
    claims: list[Claim]


def load_claims(text: str | None = None) -> Claims:
    """Return the claims of `text`, by default those of `conf/reproduction/claims.yaml`.

    Raises:
        ConfigError: an entry lacks a field, has an unknown one, or repeats an id.
    """
    if text is None:
        text = (files("grouped_lm.conf") / "reproduction" / "claims.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
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
    where = f"claims.yaml: {entry.get('id')}"
    try:
        claim = parse_fields(Claim, {"options" if key == "with" else key: v for key, v in entry.items()}, where)
    except TypeError as error:  # a field is missing
        raise ConfigError(f"{where}: {error}") from error
    check_choice(f"{where}.kind", claim.kind, KINDS)
    return claim
