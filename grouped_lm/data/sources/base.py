"""What every data source offers."""

from collections.abc import Iterator
from typing import Any, Protocol

from grouped_lm.data.text import Fragment

SPLITS = ("train", "valid")


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
