"""Counts of n-grams in a text with document borders, as sorted arrays, and what Kneser-Ney needs of them.

Letters: N tokens in the text, V tokens in the vocabulary, n contexts in a batch.

An n-gram is a context and one more token, its word. The n-grams of one length form a table that is sorted by context,
then by word. The context of an n-gram is itself an n-gram, one token shorter, so its row number in the table of that
length (its node) names it. The node of a single token is its id.

Borders: a context goes back to the last end-of-text token, and that token is its first. So no n-gram holds words of
two documents, and end-of-text serves as the start symbol of Chen and Goodman (1999).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grouped_lm.errors import ConfigError, DataError

ORDERS = range(2, 6)
_MAX_TOKENS = 2**31 - 1
"""Nodes are int32: half the memory of int64, and no text of ours is longer."""


@dataclass(frozen=True, slots=True)
class NGrams:
    """The table of all n-grams of one length."""

    words: np.ndarray
    """Last token of every n-gram, shape (n-grams,), uint16 or uint32; sorted within a context."""
    counts: np.ndarray
    """Count of every n-gram, shape (n-grams,), uint32; see `count_ngrams`."""
    offsets: np.ndarray
    """First n-gram of every context, shape (contexts + 1,), int32: context i has rows offsets[i] to offsets[i + 1]."""


@dataclass(frozen=True, slots=True)
class Level(NGrams):
    """The n-grams of one length with their discounts."""

    totals: np.ndarray
    """total(h) of every context, shape (contexts,), uint32; 0 where no word was seen."""
    reserved: np.ndarray
    """reserved(h) of every context, shape (contexts,), float64: the part of the total that goes to shorter contexts."""
    discounts: np.ndarray
    """D(0) = 0, D(1), D(2) and D(3 and more), shape (4,), float64."""

    def mass(self, counts: np.ndarray) -> np.ndarray:
        """Return c - D(c) for every count, float64; 0 for a count of 0."""
        return np.asarray(counts - self.discounts[np.minimum(counts, 3)])


def context_lengths(tokens: np.ndarray, longest: int, eot_id: int, first: int | np.ndarray = 0) -> np.ndarray:
    """Return how many tokens before every position belong to its context, in [0, longest], (..., N) int8.

    Rows of `tokens` (..., N) are separate texts. What comes before the index `first` (..., 1) of a row is padding.
    """
    index = np.arange(tokens.shape[-1], dtype=np.int32)
    borders = np.maximum(np.where(tokens == eot_id, index, np.int32(0)), np.asarray(first, np.int32))
    np.maximum.accumulate(borders, axis=-1, out=borders)
    lengths = np.zeros(tokens.shape, np.int8)
    lengths[..., 1:] = np.clip(index[1:] - borders[..., :-1], 0, longest)
    return lengths


def count_ngrams(tokens: np.ndarray, vocab_size: int, eot_id: int, order: int) -> list[NGrams]:
    """Count the n-grams of the lengths 1 to `order`.

    The longest n-grams, and those whose context begins with end-of-text, have the number of times that they occur.
    All others have the number of different tokens that occur before them: the continuation count
    N1+(. w_1 ... w_n) of Chen and Goodman (1999), section 3. The first token of the text is no word of an n-gram.

    Measured at order 5 on one core: 100 million tokens in 1.4 minutes, and 5.2 GiB at the peak, 3.0 of them the tables.

    Args:
        tokens: (N,) ids in [0, V), such as `TokenFile.tokens()`.
        vocab_size: V.
        eot_id: The first token, and the one that ends a document.
        order: Length of the longest n-grams, in [2, 5].

    Returns:
        One table for each length, shortest first. The first table holds all V tokens, unseen ones with count 0.

    Raises:
        ConfigError: `order` is out of range.
        DataError: fewer than 2 tokens, more than 2^31 - 1, an id outside [0, V), or a first token other than `eot_id`.
    """
    _check_text(tokens, vocab_size, eot_id, order)
    depths = context_lengths(tokens, order - 1, eot_id)
    words = np.arange(vocab_size, dtype=np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    offsets = np.array([0, vocab_size], np.int32)  # of single tokens: one empty context with all V
    nodes, size = tokens.astype(np.int32), vocab_size
    tables = []
    for length in range(2, order + 1):
        occurrences = np.bincount(nodes[depths == length - 2], minlength=size) if length > 2 else 0
        keys, nodes_of_length, first = _rank_keys(tokens, nodes, depths >= length - 1, vocab_size)
        counts = np.bincount(nodes[first], minlength=size) + occurrences
        tables.append(NGrams(words, counts.astype(np.uint32), offsets))
        offsets = np.searchsorted(keys, np.arange(size + 1, dtype=np.int64) * vocab_size).astype(np.int32)
        words = (keys % vocab_size).astype(words.dtype)
        nodes, size = nodes_of_length, len(keys)
    counts = np.bincount(nodes[depths == order - 1], minlength=size)
    return [*tables, NGrams(words, counts.astype(np.uint32), offsets)]


def _check_text(tokens: np.ndarray, vocab_size: int, eot_id: int, order: int) -> None:
    if order not in ORDERS:
        raise ConfigError(f"order must be in [{ORDERS[0]}, {ORDERS[-1]}], got {order}")
    if not 2 <= len(tokens) <= _MAX_TOKENS:
        raise DataError(f"n-grams can be counted in 2 to {_MAX_TOKENS:,} tokens, got {len(tokens):,}")
    if int(tokens[0]) != eot_id:
        raise DataError(f"the text must begin with end-of-text ({eot_id}), got {int(tokens[0])}: use a prepared text")
    check_ids(tokens, vocab_size)


def check_ids(tokens: np.ndarray, vocab_size: int) -> None:
    """Raise `DataError` unless all ids are in [0, V)."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise DataError(f"ids must be in [0, {vocab_size - 1}], got {tokens.min()} to {tokens.max()}")


def _rank_keys(
    tokens: np.ndarray, nodes: np.ndarray, valid: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the different pairs (node of the context, word) of the valid positions in sorted order.

    Returns:
        The sorted keys node * V + word (n-grams,) int64; the number of every position (N,) int32, -1 where it is not
        valid; one position of every n-gram (n-grams,) int32.
    """
    positions = np.flatnonzero(valid).astype(np.int32)
    keys = nodes[positions - 1].astype(np.int64)
    keys *= vocab_size
    keys += tokens[positions]
    order = np.argsort(keys)
    positions = positions[order]
    keys = keys[order]
    del order
    is_new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    keys = keys[is_new]
    numbers = np.full(len(tokens), -1, np.int32)
    numbers[positions] = np.cumsum(is_new, dtype=np.int32) - np.int32(1)
    return keys, numbers, positions[is_new]


def build_level(ngrams: NGrams) -> Level:
    """Return the level of a table of n-grams."""
    discounts = estimate_discounts(ngrams.counts)
    totals = sum_by_context(ngrams.counts, ngrams.offsets, np.uint32)
    reserved = sum_by_context(discounts[np.minimum(ngrams.counts, 3)], ngrams.offsets, np.float64)
    return Level(ngrams.words, ngrams.counts, ngrams.offsets, totals, reserved, discounts)


def bound_bytes(n_tokens: int, vocab_size: int, order: int) -> int:
    """Return the most bytes that the tables of a text take: those of a text in which no n-gram occurs twice.

    An n-gram has a word (2 bytes, or 4 above 65,536 ids) and a count (4). A context has 16 bytes more. Real text has
    a third to a half of it.
    """
    ngram, context = (6 if vocab_size <= 1 << 16 else 8), 16
    return vocab_size * (ngram + context) + n_tokens * ((order - 1) * ngram + (order - 2) * context)


def estimate_discounts(counts: np.ndarray) -> np.ndarray:
    """Return D(0) = 0, D(1), D(2) and D(3 and more) for a table of counts, shape (4,).

    Chen and Goodman (1999), section 3, the estimates of D1, D2 and D3+: with n_i the number of n-grams of count i and
    Y = n_1 / (n_1 + 2 n_2), D(i) = i - (i + 1) Y n_(i+1) / n_i. An estimate that does not exist or is not in (0, i)
    becomes i / 2; this happens in small texts alone.
    """
    number = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    discounts = np.array([0.0, 0.5, 1.0, 1.5])
    if number[1] == 0:
        return discounts
    ratio = number[1] / (number[1] + 2 * number[2])
    for i in (1, 2, 3):
        if number[i] > 0 and 0 < (estimate := i - (i + 1) * ratio * number[i + 1] / number[i]) < i:
            discounts[i] = estimate
    return discounts


def sum_by_context(values: np.ndarray, offsets: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """Return the sum of every context's range of values, shape (contexts,); 0 for an empty range."""
    sums = np.zeros(len(offsets) - 1, dtype)
    filled = np.flatnonzero(offsets[1:] > offsets[:-1])
    if len(filled):
        sums[filled] = np.add.reduceat(values, offsets[filled], dtype=dtype)
    return sums


def prune_levels(levels: Sequence[Level], min_counts: Sequence[int]) -> list[Level]:
    """Return levels that were not pruned before without the n-grams that have fewer counts than their length's minimum.

    `KneserNey.pruned` says what becomes of these counts. Totals and discounts stay those of the whole model.
    """
    kept = [level.counts >= smallest for level, smallest in zip(levels, min_counts, strict=True)]
    kept[0][:] = True  # the node of a single token is its id
    for length in range(len(levels) - 1, 1, -1):  # contexts of n-grams that stay
        kept[length - 1] |= sum_by_context(kept[length], levels[length].offsets, np.int64) > 0
    kept_contexts = [np.ones(1, bool), *kept]
    return [_prune_level(*parts) for parts in zip(levels, min_counts, kept, kept_contexts[:-1], strict=True)]


def _prune_level(level: Level, smallest: int, kept: np.ndarray, kept_contexts: np.ndarray) -> Level:
    small = level.counts < smallest
    given_up = sum_by_context(np.where(small, level.mass(level.counts), 0.0), level.offsets, np.float64)
    rows_before = np.concatenate([[0], np.cumsum(kept)])
    starts = rows_before[level.offsets[:-1]][kept_contexts]  # a dropped context has no n-gram that stays
    return Level(
        words=level.words[kept],
        counts=np.where(small, 0, level.counts)[kept].astype(level.counts.dtype),
        offsets=np.append(starts, rows_before[-1]).astype(level.offsets.dtype),
        totals=level.totals[kept_contexts],
        reserved=(level.reserved + given_up)[kept_contexts],
        discounts=level.discounts,
    )


def gather_ranges(offsets: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all n-grams of the contexts `nodes` (n,); -1 is no context. `offsets` are those of `NGrams`.

    Returns:
        For every n-gram the index of its context in `nodes`, and its own row; both (n-grams,) int64.
    """
    known = np.flatnonzero(nodes >= 0)
    starts = offsets[nodes[known]].astype(np.int64)
    sizes = offsets[nodes[known] + 1] - starts
    rows = np.repeat(known, sizes)
    ends = np.cumsum(sizes)
    return rows, np.arange(len(rows)) + np.repeat(starts - (ends - sizes), sizes)


def find_in_ranges(sorted_values: np.ndarray, offsets: np.ndarray, nodes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the row of every wanted value within the range of its context, shape (n,) int64; -1 where it is not.

    A binary search of all contexts together: 0.2 microseconds a search. Values are sorted within every context;
    `offsets` and `nodes` are as in `gather_ranges`.
    """
    found = np.full(len(nodes), -1, np.int64)
    active = np.flatnonzero(nodes >= 0)
    low = offsets[nodes[active]].astype(np.int64)
    high = offsets[nodes[active] + 1].astype(np.int64)
    while True:
        unfinished = low < high
        active, low, high = active[unfinished], low[unfinished], high[unfinished]
        if not len(active):
            return found
        middle = (low + high) >> 1
        values, goal = sorted_values[middle], wanted[active]
        equal = values == goal
        found[active[equal]] = middle[equal]
        low = np.where(values < goal, middle + 1, low)
        high = np.where(values > goal, middle, high)
        high[equal] = low[equal]


def take_or_zero(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return `values[rows]` as int64 or float64, with 0 where a row is -1."""
    known = rows >= 0
    result = np.zeros(len(rows), np.float64 if values.dtype.kind == "f" else np.int64)
    result[known] = values[rows[known]]
    return result
