"""Documents of a split, wherever they come from.

A source gives fragments: a piece of a document and whether the document ends there. Almost every document is
one fragment; a very long one is cut where tokens do not change (see `text_files.split_documents`), so that
memory stays bounded. Whitespace around a document is stripped, nothing else is touched; a document that is
empty then is passed on as "", for the caller to count.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from grouped_lm.config import DataConfig, check_choice
from grouped_lm.data.sources.hub import HubSource
from grouped_lm.data.sources.text_files import TextSource
from grouped_lm.data.tokenizers.base import Fragment

SPLITS = ("train", "valid")


class Source(Protocol):
    """One split of one source."""

    unit: str
    """What `total` counts: "documents" or "bytes"."""

    @property
    def total(self) -> int | None:
        """How much there is, for progress; None if that is not known beforehand."""

    def describe(self) -> dict[str, Any]:
        """What the text depends on, ready for JSON: equal descriptions mean equal documents."""

    def fragments(self) -> Iterator[Fragment]:
        """Pieces of documents, in order."""


class TinytalesSource:
    """The embedded generator of children's stories."""

    unit = "documents"

    def __init__(self, config: DataConfig, split: str) -> None:
        self.split, self.seed = split, config.seed
        self.total = config.num_train_stories if split == "train" else config.num_valid_stories

    def describe(self) -> dict[str, Any]:
        """Parameters, and a hash over the generator's own code and word lists."""
        digest = hashlib.sha256()
        for path in sorted(Path(__file__).parent.glob("tinytales*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return {
            "source": "tinytales",
            "split": self.split,
            "num_stories": self.total,
            "seed": self.seed,
            "generator_sha256": digest.hexdigest(),
        }

    def fragments(self) -> Iterator[Fragment]:
        from grouped_lm.data.sources.tinytales import generate_stories

        return ((story.strip(), True) for story in generate_stories(self.total, self.seed, self.split))


def open_source(config: DataConfig, split: str) -> Source:
    """Open one split of the configured source.

    Raises:
        ConfigError: split is neither train nor valid.
        DataError: a file is missing, or of a kind that cannot be read.
    """
    check_choice("split", split, SPLITS)
    kinds: dict[str, Any] = {"tinytales": TinytalesSource, "hub": HubSource, "text": TextSource.of_split}
    return kinds[config.source](config, split)


def iter_documents(config: DataConfig, split: str) -> Iterator[str]:
    """Yield the documents of a split in order, stripped at both ends; empty ones too, as "".

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


def describe_source(config: DataConfig, split: str) -> dict[str, Any]:
    """Describe what a split's documents depend on, ready for JSON; it changes when they may change.

    Raises:
        DataError: the source is missing or unreadable.
    """
    return open_source(config, split).describe()
