"""How much of a judged text stands in the training text already: n-grams of words that both have."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grouped_lm.data.sources import join_fragments
from grouped_lm.data.sources.text_files import TextSource, find_files
from grouped_lm.data.text import EOT_TEXT
from grouped_lm.errors import DataError, disk_errors
from grouped_lm.system.files import write_bytes

WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: a polynomial in it, modulo 2^64, hashes a row of word numbers."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What the training text has of another one."""

    documents: list[str]
    """The documents of the other text that have a word."""
    shares: np.ndarray
    """(documents,) The share of each document's n-grams that the training text has, in [0, 1]; 0 without n-grams."""
    total: float
    """The same share over all n-grams together."""

    def fresh(self, at_most: float) -> list[str]:
        """Return the documents whose share is `at_most` that."""
        return [text for text, share in zip(self.documents, self.shares, strict=True) if share <= at_most]


def measure_overlap(train: Iterable[str], judged: Iterable[str], n: int = 8) -> Overlap:
    """Compare the n-grams of words of two texts. Case and what stands between the words do not count.

    Time is that of sorting the training text's n-grams, and memory 8 bytes for each.

    Args:
        train: documents of the training text.
        judged: documents of the other text.
        n: words of an n-gram, >= 1.
    """
    numbers: dict[str, int] = {}
    known = [hashed(words_of(document, numbers), n) for document in train]
    seen = np.unique(np.concatenate([np.empty(0, np.uint64), *known]))
    documents = [document for document in judged if WORD.search(document)]
    found = [is_in(hashed(words_of(document, numbers), n), seen) for document in documents]
    shares = np.array([own.mean() if own.size else 0.0 for own in found])
    everything = np.concatenate([np.empty(0, bool), *found])
    return Overlap(documents, shares, float(everything.mean()) if everything.size else 0.0)


def words_of(document: str, numbers: dict[str, int]) -> np.ndarray:
    """Return the number of each word of a document; new words get the next ones."""
    return np.array([numbers.setdefault(word, len(numbers) + 1) for word in WORD.findall(document.lower())], np.uint64)


def hashed(words: np.ndarray, n: int) -> np.ndarray:
    """Return a hash of each n-gram of a row of word numbers: `len(words)` - n + 1 of them, or none."""
    count = max(0, len(words) - n + 1)
    total = np.zeros(count, np.uint64)
    for place in range(n):
        total = total * FACTOR + words[place : place + count]
    return total


def is_in(wanted: np.ndarray, sorted_values: np.ndarray) -> np.ndarray:
    """Return which values of a row are in another, sorted one. `np.isin` would sort that one for each document."""
    if not len(sorted_values):
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    found: np.ndarray = sorted_values[places] == wanted
    return found


def overlap_of_files(train: str, judged: str, n: int = 8, text_field: str = "text") -> Overlap:
    """Compare two texts, each a file, folder or glob. See `measure_overlap`.

    Raises:
        DataError: nothing there, or unreadable; or no word in one of the texts.
    """
    trained_on = TextSource(find_files(train, "TRAIN"), text_field)
    other = TextSource(find_files(judged, "TEXT"), text_field)
    overlap = measure_overlap(join_fragments(trained_on.fragments()), join_fragments(other.fragments()), n)
    if not overlap.documents:
        raise DataError(f"{judged} has no document with a word in it")
    return overlap


def write_documents(path: Path, documents: list[str]) -> None:
    """Write documents as text that `data=text` reads.

    Raises:
        DataError: no document; or the file is there and holds something else.
        DiskError: it cannot be written.
    """
    if not documents:
        raise DataError(f"no document is left for {path}: give a larger --at-most")
    content = "".join(f"{document}\n{EOT_TEXT}\n" for document in documents).encode()
    if path.exists() and (not path.is_file() or path.read_bytes() != content):
        raise DataError(f"{path} is there and holds something else: give another --out, or remove it")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
