"""The named head settings of `conf/variant`, read without Hydra."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from grouped_lm.config import check_choice


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named setting of a head.

    Attributes:
        name: The file's name, as in `variant=NAME`.
        label: The name in tables and plots.
        description: One or two sentences.
        head: The head's name and the settings that differ from its defaults, for `parse_head`.
        grouping: How tokens are put into groups, for heads with groups.
        tokenizer: The tokenizer's name and settings; None for the run's own tokenizer.
        screen: Whether the screen of `gvc advise` takes it by default: it led, or came near, on some text.
    """

    name: str
    label: str
    description: str
    head: dict[str, Any]
    grouping: str = "merge_rank"
    tokenizer: dict[str, Any] | None = None
    screen: bool = False

    def head_config(self, **settings: Any) -> Any:
        """Return the head's config, with other settings on top."""
        from grouped_lm.runs.load import parse_head  # imports torch

        return parse_head(self.head | settings)


@cache
def load_variants() -> dict[str, Variant]:
    """Return every variant by name, in alphabetical order."""
    folder = files("grouped_lm.conf") / "variant"
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    return {name: _parse(name, yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))) for name in names}


def load_variant(name: str, path: str = "variant") -> Variant:
    """Return the variant of `conf/variant/NAME.yaml`. An error names `path`, the config key with the name."""
    check_choice(path, name, tuple(load_variants()))
    return load_variants()[name]


def _parse(name: str, values: dict[str, Any]) -> Variant:
    chosen = {key.removeprefix("override /"): choice for entry in values["defaults"] for key, choice in entry.items()}
    optional = {"grouping": chosen["grouping"]} if "grouping" in chosen else {}
    if "tokenizer" in chosen:
        optional["tokenizer"] = {"name": chosen["tokenizer"]} | values.get("tokenizer", {})
    return Variant(name=name, head={"name": chosen["head"]} | values.get("head", {}), **values["variant"], **optional)
