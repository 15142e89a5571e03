"""The prior of the classes of a partition of the vocabulary, and of the tokens inside one class.

Letters: V tokens in the vocabulary, K classes, S the size of the largest class, n contexts in a batch.

A two-step head needs log p(class | context) for all classes and log p(token | class, context) for one class: K + S
numbers instead of V. Both are sums over the few n-grams that a context has, and the backoff weight times the same of
the next shorter context. The empty context is added up over the whole vocabulary once.
"""

from dataclasses import dataclass

import numpy as np

from grouped_lm.errors import ConfigError
from grouped_lm.prior.kneser_ney import Histories, KneserNey
from grouped_lm.prior.tables import Level, find_in_ranges, gather_ranges

PADDING = -1
"""In `ClassPrior.members`: a place without a token."""


@dataclass(frozen=True, slots=True)
class _ClassLevel:
    """The n-grams of one length, sorted by context, then by class of the word."""

    order: np.ndarray
    """Row in the level's table of every n-gram, shape (n-grams,), int32."""
    classes: np.ndarray
    """Class of every entry, shape (entries,), int32: an entry is a context and one class of its words."""
    starts: np.ndarray
    """First n-gram of every entry in `order`, shape (entries + 1,), int32."""
    offsets: np.ndarray
    """First entry of every context, shape (contexts + 1,), int32."""
    mass: np.ndarray
    """Sum of c - D(c) of every entry, shape (entries,), float64."""


class ClassPrior:
    """Probabilities of classes, and of tokens inside a class, under an n-gram model.

    Args:
        model: The n-gram model.
        token_to_class: (V,) class of every token, in [0, K); every class has a token.
        token_to_slot: (V,) place of every token in its class; default: in the order of the ids.

    Attributes:
        members: (K, S) int64, token at every place of every class, `PADDING` where there is none.

    Raises:
        ConfigError: a shape other than (V,), a class without a token, or two tokens at one place.
    """

    def __init__(self, model: KneserNey, token_to_class: np.ndarray, token_to_slot: np.ndarray | None = None) -> None:
        self.model = model
        self.token_to_class = np.asarray(token_to_class, np.int64)
        if self.token_to_class.shape != (model.vocab_size,):
            raise ConfigError(f"token_to_class must have {model.vocab_size} entries, got {self.token_to_class.shape}")
        self.class_sizes = np.bincount(self.token_to_class)
        if self.class_sizes.min() == 0:
            raise ConfigError(f"class {int(self.class_sizes.argmin())} has no token: number the classes without gaps")
        if token_to_slot is None:
            first = np.cumsum(self.class_sizes) - self.class_sizes
            token_to_slot = np.argsort(np.argsort(self.token_to_class, kind="stable")) - first[self.token_to_class]
        self.token_to_slot = slots = np.asarray(token_to_slot, np.int64)
        self.members = np.full((len(self.class_sizes), int(slots.max()) + 1), PADDING, np.int64)
        self.members[self.token_to_class, slots] = np.arange(model.vocab_size)
        if np.count_nonzero(self.members != PADDING) < model.vocab_size:
            raise ConfigError("token_to_slot gives two tokens of one class the same place")
        self._levels = [self._group_level(level) for level in model.levels]

    def class_log_prob(self, histories: Histories) -> np.ndarray:
        """Return log p(class | context) of all classes, shape (n, K), float64.

        It is the log of `KneserNey.probabilities` summed over the tokens of a class. Contexts with leave-one-out give
        the probabilities without the token that is left out.
        """
        contexts = self.model.history_contexts(histories)
        inverse, backoff = self.model.interpolation(0, contexts)
        prob = np.outer(inverse, self._levels[0].mass)
        prob += np.outer(backoff, self.class_sizes / self.model.vocab_size)
        if contexts.left_out is not None:
            own = self.token_to_class[contexts.left_out]
            prob[np.arange(len(contexts)), own] += self.model.lost_mass(0, contexts) * inverse
        for k in range(1, self.model.order):
            inverse, backoff = self.model.interpolation(k, contexts)
            rows, entries = gather_ranges(self._levels[k].offsets, contexts.nodes[k])
            classes, mass = self._levels[k].classes[entries], self._levels[k].mass[entries]
            if contexts.left_out is not None:  # before the division, so that a class without counts gets an exact 0
                mass += np.where(classes == own[rows], self.model.lost_mass(k, contexts)[rows], 0.0)
            prob *= backoff[:, None]
            prob[rows, classes] += mass * inverse[rows]
        return np.log(prob)

    def member_log_prob(self, histories: Histories, classes: np.ndarray) -> np.ndarray:
        """Return log p(token | class, context) of the tokens of one class for each context: `classes` (n,), in [0, K).

        Returns:
            (n, S) float64, places as in `members`; -inf at places without a token.
        """
        contexts = self.model.history_contexts(histories)
        tokens = self.members[classes]
        inverse, backoff = self.model.interpolation(0, contexts)
        _, mass = self.model.word_mass(0, contexts, np.arange(len(contexts))[:, None], tokens)
        prob = mass * inverse[:, None] + backoff[:, None] / self.model.vocab_size
        prob[tokens == PADDING] = 0
        for k in range(1, self.model.order):
            inverse, backoff = self.model.interpolation(k, contexts)
            prob *= backoff[:, None]
            level = self._levels[k]
            entries = find_in_ranges(level.classes, level.offsets, contexts.nodes[k], classes)
            rows, places = gather_ranges(level.starts, entries)
            words, mass = self.model.word_mass(k, contexts, rows, level.order[places])
            prob[rows, self.token_to_slot[words]] += mass * inverse[rows]
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(prob) - np.log(prob.sum(axis=1, keepdims=True)))

    def _group_level(self, level: Level) -> _ClassLevel:
        """Sort the n-grams of a level by context and class, and add up the mass of every pair."""
        offsets, n_class = level.offsets, len(self.class_sizes)
        contexts = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        keys = contexts * n_class + self.token_to_class[level.words]
        order = np.argsort(keys, kind="stable").astype(np.int32)
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else keys
        mass = level.mass(level.counts)[order]
        keys = keys[starts]
        return _ClassLevel(
            order=order,
            classes=(keys % n_class).astype(np.int32),
            starts=np.append(starts, len(order)).astype(np.int32),
            offsets=np.searchsorted(keys, np.arange(len(offsets)) * n_class).astype(np.int32),
            mass=np.add.reduceat(mass, starts) if len(starts) else mass,
        )
