"""Data sources by name, and the documents of a split.

A source is one file with a schema (a subclass of `DataConfig`) and a class with the methods of `Source`, one line in
`SOURCES`, and one YAML in conf/data/. Sources strip the whitespace around a document and turn line ends into LF; they
change nothing else. A document that is empty then is yielded as "", so that the caller can count it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from grouped_lm.config import DataConfig, check_choice, parse_named
from grouped_lm.data.sources.hub import HubConfig, HubSource
from grouped_lm.data.sources.text_files import TextConfig, TextSource
from grouped_lm.data.sources.tinytales import TinytalesConfig, TinytalesSource
from grouped_lm.data.text import SPLITS, Fragment, Source

SOURCES: dict[str, tuple[type[DataConfig], Callable[[Any, str], Source]]] = {
    "tinytales": (TinytalesConfig, TinytalesSource),
    "hub": (HubConfig, HubSource),
    "text": (TextConfig, TextSource.of_split),
}
"""Every source by the name in `data.source`: its schema, and a function of (config, split) that opens it."""


def parse_data_config(values: Any) -> DataConfig:
    """Return the config of the source that `values["source"]` names.

    Raises:
        ConfigError: an unknown source or key, a value of another type or out of range.
    """
    schemas = {name: schema for name, (schema, _) in SOURCES.items()}
    config: DataConfig = parse_named(schemas, values, "data", key="source")
    return config


def open_source(config: DataConfig, split: str) -> Source:
    """Return the split "train" or "valid" of the configured source. A plain `DataConfig` has the default options.

    Raises:
        ConfigError: an unknown split or source.
        DataError: a file is missing, or of a kind that cannot be read.
    """
    check_choice("split", split, SPLITS)
    check_choice("data.source", config.source, tuple(SOURCES))
    schema, open_split = SOURCES[config.source]
    return open_split(config if isinstance(config, schema) else schema(**asdict(config)), split)


def iter_documents(config: DataConfig, split: str) -> Iterator[str]:
    """Yield the documents of a split in order, stripped at both ends; empty ones as "".

    Raises:
        DataError: the source is missing, unreadable, not UTF-8, or lacks the text column.
    """
    return join_fragments(open_source(config, split).fragments())


def join_fragments(fragments: Iterable[Fragment]) -> Iterator[str]:
    """Yield whole documents."""
    parts: list[str] = []
    for text, last in fragments:
        parts.append(text)
        if last:
            yield "".join(parts)
            parts.clear()
