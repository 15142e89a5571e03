"""The form in which text moves from a source to a tokenizer: fragments of documents."""

import re
from collections.abc import Iterator
from typing import Any, Protocol

SPLITS = ("train", "valid")
EOT_TEXT = "<|endoftext|>"
"""The end of a document in a .txt file, and the text that `decode` returns for the end-of-text id."""

Fragment = tuple[str, bool]
"""A piece of a document, and whether the document ends with it. Documents are cut where tokens do not change."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def valid_unicode(text: str) -> str:
    """Return the text with U+FFFD for lone surrogates, which UTF-8 cannot hold, but a JSON string may contain."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def unix_line_ends(text: str) -> str:
    """Return the text with LF for CR LF and for a single CR, as Python reads text files."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


class Source(Protocol):
    """One split of one source."""

    @property
    def unit(self) -> str:
        """Return what `total` counts: "documents" or "bytes"."""

    @property
    def total(self) -> int | None:
        """Return the size of the split in units, for progress; None if it is not known beforehand."""

    def describe(self) -> dict[str, Any]:
        """Return what the text depends on, ready for JSON: equal descriptions mean equal documents."""

    def fragments(self) -> Iterator[Fragment]:
        """Yield the pieces of all documents in order."""
