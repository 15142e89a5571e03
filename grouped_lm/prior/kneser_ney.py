"""Interpolated modified Kneser-Ney: an n-gram language model, exact over the whole vocabulary.

Letters: N tokens in a text, V tokens in the vocabulary, n contexts in a batch, k tokens in a context.

Source: S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling", Computer Speech
and Language 13, 1999, section 3. For a context h of k tokens, and h' without its first token:

    p(w | h) = (c(h w) - D(c(h w))) / total(h) + reserved(h) / total(h) * p(w | h')
    total(h) = sum of c(h w) over w,   reserved(h) = sum of D(c(h w)) over w

c is the count of `count_ngrams`, D the discount of `estimate_discounts`, and the empty context interpolates with 1 / V.
A context that was never seen has p(w | h) = p(w | h').
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from grouped_lm.errors import ConfigError, DataError
from grouped_lm.prior import tables
from grouped_lm.prior.tables import Level, take_or_zero

NO_TOKEN = -1
"""In rows of ids: a place before the first token."""
_CHUNK = 1 << 20
"""Positions of a text that are looked up together: 0.3 GB at order 5."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """Contexts of a model, looked up once and used by all its methods."""

    nodes: np.ndarray
    """Node of the context of k tokens in row k, shape (order, n), int64; -1 where it was not seen or does not exist."""
    left_out: np.ndarray | None = None
    """Leave-one-out: the token that is taken out of the counts, shape (n,), int64."""
    own_counts: np.ndarray | None = None
    """Leave-one-out: count of that token before it is taken out, (order, n) int64; 0 where it keeps its count."""

    def __len__(self) -> int:
        return int(self.nodes.shape[1])


Histories = Contexts | Sequence[Sequence[int] | np.ndarray]
"""Contexts, or the tokens before each prediction: the last `order - 1` of them count."""


@dataclass(frozen=True, slots=True)
class KneserNey:
    """An interpolated modified Kneser-Ney model. `build_kneser_ney` makes one."""

    vocab_size: int
    eot_id: int
    levels: list[Level]
    """One for each length of n-grams, shortest first."""
    min_counts: tuple[int, ...]
    """Smallest count that is kept, for each length; all 1 if nothing is pruned."""

    @property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return len(self.levels)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(getattr(level, field.name).nbytes for level in self.levels for field in fields(level))

    def text_contexts(
        self, tokens: np.ndarray, start: int = 1, stop: int | None = None, leave_one_out: bool = False
    ) -> Contexts:
        """Return the contexts of the tokens at the positions `start` to `stop` - 1 of a text.

        Args:
            tokens: (N,) ids in [0, V); only what the positions and their contexts need is read.
            start: First position, >= 1.
            stop: End of the positions, default N.
            leave_one_out: Predict every position as if its own token had not been counted; the text must be the
                training text. The longest n-gram that ends at the position loses one count. If none is left, the next
                shorter n-gram loses one too, because one token less occurs before it, and so on. Discounts stay as
                they are. N-grams that have the token in their context stay as well.

        Raises:
            ConfigError: leave-one-out with a model that is pruned to counts above 2.
            DataError: leave-one-out with a text that was not counted.
        """
        return self._look_up(tokens, start, len(tokens) if stop is None else stop, leave_one_out)[0]

    def history_contexts(self, histories: Histories) -> Contexts:
        """Return the contexts for a prediction after each of the histories; an empty history is allowed."""
        if isinstance(histories, Contexts):
            return histories
        longest = self.order - 1
        ids = np.full((len(histories), longest), NO_TOKEN, np.int64)
        for row, history in enumerate(histories):
            known = np.asarray(history[max(0, len(history) - longest) :], np.int64)
            ids[row, longest - len(known) :] = known
        return self.contexts_after(ids)

    def contexts_after(self, ids: np.ndarray, left_out: np.ndarray | None = None) -> Contexts:
        """Return the contexts for a prediction after each row of ids.

        Args:
            ids: (n, order - 1) tokens before each prediction, the last one at the end; `NO_TOKEN` before the first.
            left_out: Leave-one-out, as in `text_contexts`: the (n,) tokens that follow in the training text. Rows must
                begin where a context does: with as many tokens as fit, or at an end-of-text.
        """
        rows = np.zeros((len(ids), self.order), np.int64)  # the last column is where the prediction would be
        rows[:, :-1] = np.where(ids == NO_TOKEN, 0, ids)
        tables.check_ids(rows, self.vocab_size)
        first = np.count_nonzero(ids == NO_TOKEN, axis=1)[:, None]
        depths = tables.context_lengths(rows, self.order - 1, self.eot_id, first)
        nodes = self._walk(rows.ravel(), depths.ravel())[0][:, self.order - 1 :: self.order]
        if left_out is None:
            return Contexts(nodes)
        tables.check_ids(left_out, self.vocab_size)
        return Contexts(nodes, left_out, self._removed_counts(self.ngrams(nodes, left_out), depths[:, -1]))

    def ngrams(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the n-grams of (n,) tokens after contexts with (order, n) nodes, (order, n); -1 where unseen."""
        found = [tokens]
        for level, contexts in zip(self.levels[1:], nodes[1:], strict=True):
            found.append(tables.find_in_ranges(level.words, level.offsets, contexts, tokens))
        return np.stack(found)

    def target_log_prob(
        self, tokens: np.ndarray, start: int = 1, stop: int | None = None, leave_one_out: bool = False
    ) -> np.ndarray:
        """Return log p in nats of the tokens of `text_contexts`, without a V-wide array, (stop - start,) float64."""
        stop = len(tokens) if stop is None else stop
        result = np.empty(max(0, stop - start))
        for begin in range(start, stop, _CHUNK):
            end = min(stop, begin + _CHUNK)
            contexts, children = self._look_up(tokens, begin, end, leave_one_out)
            result[begin - start : end - start] = self.log_prob(contexts, children)
        return result

    def log_prob(self, contexts: Contexts, ngrams: np.ndarray) -> np.ndarray:
        """Return log p in nats, (n,) float64, of tokens whose n-grams are (order, n), as `ngrams` returns them.

        Contexts with leave-one-out are those of the same tokens.
        """
        prob = np.full(len(contexts), 1 / self.vocab_size)
        for k, level in enumerate(self.levels):
            mass = level.mass(take_or_zero(level.counts, ngrams[k]))
            if contexts.own_counts is not None:
                mass += self.lost_mass(k, contexts)
            inverse, backoff = self.interpolation(k, contexts)
            prob = mass * inverse + backoff * prob
        return np.asarray(np.log(prob))

    def probabilities(self, histories: Histories) -> np.ndarray:
        """Return p(w | context) of the whole vocabulary, shape (n, V), float64: for tests and small batches."""
        contexts = self.history_contexts(histories)
        inverse, backoff = self.interpolation(0, contexts)
        prob = np.outer(inverse, self.levels[0].mass(self.levels[0].counts)) + backoff[:, None] / self.vocab_size
        if contexts.left_out is not None:
            prob[np.arange(len(contexts)), contexts.left_out] += self.lost_mass(0, contexts) * inverse
        for k, level in enumerate(self.levels[1:], start=1):
            inverse, backoff = self.interpolation(k, contexts)
            rows, ngrams = tables.gather_ranges(level.offsets, contexts.nodes[k])
            words, mass = self.word_mass(k, contexts, rows, ngrams)
            prob *= backoff[:, None]
            prob[rows, words] += mass * inverse[rows]
        return prob

    def context_counts(self, histories: Histories) -> np.ndarray:
        """Return total(h) of the contexts of 1 to order - 1 tokens, shape (n, order - 1), int64, for a gate.

        The longest context has the number of times that it was followed by a token. Shorter ones have the sum of
        continuation counts. A context that was never seen has 0.
        """
        contexts = self.history_contexts(histories)
        totals = [self._sums(k, contexts)[0] for k in range(1, self.order)]
        return np.stack(totals, axis=1).astype(np.int64)

    def sample(self, history: Sequence[int], rng: np.random.Generator, size: int = 1) -> np.ndarray:
        """Draw tokens after a history, shape (size,), int64.

        Each draw begins with the longest context. It takes one of the context's words with the chance
        (c - D(c)) / total, or goes on with the next shorter context; after the empty context comes the uniform draw.
        """
        contexts = self.history_contexts([history])
        draws = rng.integers(self.vocab_size, size=size)
        open_draws = np.arange(size)
        for k in reversed(range(self.order)):
            backoff = self.interpolation(k, contexts)[1]
            here = open_draws[rng.random(len(open_draws)) >= backoff[0]]
            if len(here):
                words, mass = self.word_mass(
                    k, contexts, *tables.gather_ranges(self.levels[k].offsets, contexts.nodes[k])
                )
                sums = np.cumsum(mass)
                picked = np.searchsorted(sums, rng.random(len(here)) * sums[-1], side="right")
                draws[here] = words[np.minimum(picked, len(sums) - 1)]
                open_draws = np.setdiff1d(open_draws, here, assume_unique=True)
        return draws

    def pruned(self, min_counts: Sequence[int]) -> "KneserNey":
        """Return a smaller model without the n-grams that have a small count.

        The whole count of such an n-gram goes to the shorter contexts, as its discount did before; so the model still
        sums to 1. An n-gram that is the context of a kept one stays as a node with count 0.

        Args:
            min_counts: Smallest count that is kept, >= 1, for each length; below the longest, continuation counts.

        Raises:
            ConfigError: not one number for each length, or a number below 1.
        """
        minimum = tuple(int(number) for number in min_counts)
        if len(minimum) != self.order or min(minimum) < 1:
            raise ConfigError(f"min_counts must be {self.order} numbers >= 1, one for each length, got {minimum}")
        if max(minimum) == 1:
            return self
        if max(self.min_counts) > 1:
            raise ConfigError(f"the model is already pruned to {self.min_counts}: prune the whole one")
        return KneserNey(self.vocab_size, self.eot_id, tables.prune_levels(self.levels, minimum), minimum)

    def interpolation(self, k: int, contexts: Contexts) -> tuple[np.ndarray, np.ndarray]:
        """Return 1 / total(h) and reserved(h) / total(h) of the contexts of k tokens, both (n,) float64.

        Where a context has no counts, or none without what is left out, they are 0 and 1.
        """
        totals, reserved = self._sums(k, contexts)
        seen = totals > 0
        inverse = np.where(seen, 1 / np.where(seen, totals, 1), 0.0)
        return inverse, np.where(seen, reserved * inverse, 1.0)

    def word_mass(
        self, k: int, contexts: Contexts, rows: np.ndarray, ngrams: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the words of n-grams and their c - D(c), without what is left out, both in the shape of `ngrams`.

        `rows` and `ngrams` are those of `gather_ranges` for the contexts of k tokens.
        """
        level = self.levels[k]
        words, mass = level.words[ngrams], level.mass(level.counts[ngrams])
        if contexts.left_out is not None:
            mass += np.where(words == contexts.left_out[rows], self.lost_mass(k, contexts)[rows], 0.0)
        return words, mass

    def lost_mass(self, k: int, contexts: Contexts) -> np.ndarray:
        """Return how much c - D(c) of the token that is left out changes in the contexts of k tokens, (n,), <= 0."""
        assert contexts.own_counts is not None
        own, level, smallest = contexts.own_counts[k], self.levels[k], self.min_counts[k]

        def kept(counts: np.ndarray) -> Any:  # an n-gram that loses its last count but one is pruned then
            return np.where(counts >= smallest, level.mass(counts), 0.0)

        return np.asarray(kept(np.maximum(own - 1, 0)) - kept(own))

    def _sums(self, k: int, contexts: Contexts) -> tuple[np.ndarray, np.ndarray]:
        """Return total(h) int64 and reserved(h) float64 of the contexts of k tokens, without what is left out."""
        level = self.levels[k]
        totals = take_or_zero(level.totals, contexts.nodes[k])
        reserved = take_or_zero(level.reserved, contexts.nodes[k])
        if contexts.own_counts is None:
            return totals, reserved
        # A context that was pruned has no total to take from: every n-gram after it was pruned too.
        removed = (contexts.own_counts[k] > 0) & (totals > 0)
        return totals - removed, reserved - removed - self.lost_mass(k, contexts)

    def _look_up(self, tokens: np.ndarray, start: int, stop: int, leave_one_out: bool) -> tuple[Contexts, np.ndarray]:
        """Return the contexts of positions of a text, and the nodes of the n-grams that end there, (order, n) int64."""
        if not 1 <= start <= stop <= len(tokens):
            raise DataError(f"positions must be in [1, {len(tokens)}], got {start} to {stop}")
        begin = max(0, start - self.order + 1)
        piece = np.asarray(tokens[begin:stop], np.int64)
        tables.check_ids(piece, self.vocab_size)
        depths = tables.context_lengths(piece, self.order - 1, self.eot_id)
        contexts, children = (nodes[:, start - begin :] for nodes in self._walk(piece, depths))
        if not leave_one_out:
            return Contexts(contexts), children
        removed = self._removed_counts(children, depths[start - begin :])
        return Contexts(contexts, piece[start - begin :], removed), children

    def _walk(self, tokens: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nodes of the contexts and of the n-grams that end at every position of a text.

        The n-gram of k + 1 tokens at a position is a child of its context, the n-gram of k tokens one position before.
        Both are (order, N) int64: row k is for contexts of k tokens; -1 where there is none or it was not seen.
        `depths` (N,) says how many tokens a position's context may have; 0 at the first.
        """
        contexts = np.full((self.order, len(tokens)), -1, np.int64)
        children = np.empty_like(contexts)
        contexts[0], children[0] = 0, tokens
        for k in range(1, self.order):
            contexts[k, 1:] = np.where(depths[1:] >= k, children[k - 1, :-1], -1)
            children[k] = tables.find_in_ranges(self.levels[k].words, self.levels[k].offsets, contexts[k], tokens)
        return contexts, children

    def _removed_counts(self, ngrams: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """Return the counts of the n-grams that lose one when their tokens are left out; 0 for the others.

        An n-gram of the training text that was pruned for a smallest count of 2 was seen once.
        """
        if max(self.min_counts) > 2:
            raise ConfigError(
                f"leave-one-out needs counts of 2 and more, and the model is pruned to {self.min_counts}: it does not "
                "know how often the others were seen"
            )
        own = np.zeros_like(ngrams)
        losing = np.ones(ngrams.shape[1], bool)
        for k in reversed(range(self.order)):
            exists = depths >= k
            counts = take_or_zero(self.levels[k].counts, ngrams[k])
            if self.min_counts[k] == 1 and np.any(exists & losing & (counts == 0)):
                raise DataError("leave-one-out is for the training text alone: this text was not counted")
            counts = np.maximum(counts, 1)
            own[k] = np.where(exists & losing, counts, 0)
            losing = np.where(exists, losing & (counts == 1), losing)
        return own


def build_kneser_ney(
    tokens: np.ndarray, vocab_size: int, eot_id: int, order: int = 5, min_counts: Sequence[int] | None = None
) -> KneserNey:
    """Count a text and return its interpolated modified Kneser-Ney model.

    The first arguments and the errors are those of `count_ngrams`. `min_counts` is for `KneserNey.pruned`; None keeps
    all n-grams.
    """
    levels = [tables.build_level(ngrams) for ngrams in tables.count_ngrams(tokens, vocab_size, eot_id, order)]
    model = KneserNey(vocab_size, eot_id, levels, (1,) * order)
    return model if min_counts is None else model.pruned(min_counts)
