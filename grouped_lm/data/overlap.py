"""How much of a validation text is in the training text too: n-grams of words that both have."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from grouped_lm.data.sources import join_fragments
from grouped_lm.data.sources.text_files import TextSource, find_files
from grouped_lm.errors import DataError

WORD = re.compile(r"\w+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: a polynomial in it, modulo 2^64, hashes a row of word numbers."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What the training text has of a validation text."""

    documents: list[str]
    """The documents of the validation text that have a word."""
    shares: np.ndarray
    """(documents,) The share of each document's n-grams that the training text has, in [0, 1]; 0 without n-grams."""
    total: float
    """The same share over all n-grams together."""

    def fresh(self, at_most: float) -> list[str]:
        """Return the documents with a share of `at_most` or less."""
        return [text for text, share in zip(self.documents, self.shares, strict=True) if share <= at_most]


def measure_overlap(train: Iterable[str], valid: Iterable[str], n: int = 8) -> Overlap:
    """Compare the n-grams of words of two texts. Case and what stands between the words do not count.

    Time is that of sorting the training text's n-grams, and memory 8 bytes for each.

    Args:
        train: documents of the training text.
        valid: documents of the validation text.
        n: words of an n-gram, >= 1.
    """
    numbers: dict[str, int] = {}
    known = [ngram_hashes(word_numbers(document, numbers), n) for document in train]
    seen = np.unique(np.concatenate([np.empty(0, np.uint64), *known]))
    documents = [document for document in valid if WORD.search(document)]
    found = [is_in(ngram_hashes(word_numbers(document, numbers), n), seen) for document in documents]
    shares = np.array([own.mean() if own.size else 0.0 for own in found])
    everything = np.concatenate([np.empty(0, bool), *found])
    return Overlap(documents, shares, float(everything.mean()) if everything.size else 0.0)


def word_numbers(document: str, numbers: dict[str, int]) -> np.ndarray:
    """Return the number of each word of a document; new words get the next ones."""
    return np.array([numbers.setdefault(word, len(numbers) + 1) for word in WORD.findall(document.lower())], np.uint64)


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Return the hashes of the n-grams of (N,) word numbers: (N - n + 1,) uint64, or none where N < n."""
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


def overlap_of_files(train: str, valid: str, n: int = 8, text_field: str = "text") -> Overlap:
    """Compare two texts, each a file, folder or glob. See `measure_overlap`.

    Raises:
        DataError: nothing there, or unreadable; or no word in one of the texts.
    """
    files = find_files(train, "TRAIN"), find_files(valid, "VALID")
    sources = (TextSource(paths, text_field, option="--text-field") for paths in files)
    train_documents, valid_documents = (join_fragments(source.fragments()) for source in sources)
    overlap = measure_overlap(train_documents, valid_documents, n)
    if not overlap.documents:
        raise DataError(f"{valid} has no document with a word in it")
    return overlap
