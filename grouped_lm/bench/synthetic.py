"""Languages of known entropy for any V and seed. A model's loss minus the entropy is the model's own error.

Ids follow frequency, most frequent first (nearly so in the Markov language), as the paper's grouping presumes.
Letters: B sequences, T length, V vocabulary, C classes.
"""

import numpy as np

SHARPNESS = 3.0
"""Standard deviation of the logits of a language's transitions."""


def zipf(size: int) -> np.ndarray:
    """Return (size,) float64 probabilities proportional to 1 / rank."""
    weights = np.arange(1, size + 1, dtype=np.float64) ** -1.0
    return weights / weights.sum()


def entropy_of(probs: np.ndarray) -> np.ndarray:
    """Return -sum p log p over the last axis, in nats; p = 0 adds 0."""
    return -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(-1)


def draw(cumulative: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return indices by inversion of one distribution, given its cumulative sums and numbers in [0, 1)."""
    return np.minimum(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), len(cumulative) - 1)


class Language:
    """A stationary Markov chain over C classes, then a token of the class: p(y | x) = A[c(x), c(y)] p(y | c(y)).

    Token i is of class i mod C, so that a class is no group of neighbouring ids. Tokens of a class follow Zipf's law.
    The entropy rate is sum over c of pi[c] sum over d of A[c, d] (-log A[c, d] + H(token | d)), pi the stationary
    distribution. With one class, tokens are independent of each other and only frequencies can be learnt.

    Attributes:
        vocab_size: V.
        n_class: C, at most V.
        transition: (C, C) float64, A.
        stationary: (C,) float64, pi.
        frequencies: (V,) float64, the probability of each id at any position.
        entropy: Nats per token, given all tokens before it.
    """

    def __init__(self, vocab_size: int, n_class: int, seed: int = 0) -> None:
        self.vocab_size, self.n_class = vocab_size, min(n_class, vocab_size)
        logits = SHARPNESS * np.random.default_rng(seed).standard_normal((self.n_class, self.n_class))
        weights = np.exp(logits - logits.max(1, keepdims=True))
        self.transition = weights / weights.sum(1, keepdims=True)
        self.stationary = stationary_of(self.transition)
        ids = np.arange(vocab_size)
        self._sizes = (vocab_size - np.arange(self.n_class) + self.n_class - 1) // self.n_class
        self._inside = {int(size): zipf(int(size)) for size in np.unique(self._sizes)}  # sizes differ by one at most
        self._of_class = np.zeros(vocab_size)
        for size, probs in self._inside.items():
            chosen = self._sizes[ids % self.n_class] == size
            self._of_class[chosen] = probs[ids[chosen] // self.n_class]
        self.frequencies = self.stationary[ids % self.n_class] * self._of_class
        inside = np.array([entropy_of(self._inside[int(size)]) for size in self._sizes])
        self.entropy = float(self.stationary @ (entropy_of(self.transition) + self.transition @ inside))

    def sample(self, n_sequences: int, length: int, seed: int) -> np.ndarray:
        """Return (B, T) int64 ids; every sequence starts in the stationary distribution."""
        rng = np.random.default_rng(seed)
        classes = np.zeros((n_sequences, length), dtype=np.int64)
        if self.n_class > 1:
            classes[:, 0] = draw(self.stationary.cumsum(), rng.random(n_sequences))
            cumulative = self.transition.cumsum(1)
            for place in range(1, length):
                uniform = rng.random(n_sequences)[:, None] * cumulative[0, -1]
                chosen = (cumulative[classes[:, place - 1]] <= uniform).sum(1)
                classes[:, place] = np.minimum(chosen, self.n_class - 1)
        uniform, slots = rng.random(classes.shape), np.empty_like(classes)
        for size, probs in self._inside.items():
            chosen = self._sizes[classes] == size
            slots[chosen] = draw(probs.cumsum(), uniform[chosen])
        return slots * self.n_class + classes

    def log_prob(self, ids: np.ndarray) -> np.ndarray:
        """Return (B, T - 1) log-probabilities of ids[:, 1:], each given the ids before it, in nats."""
        classes = ids % self.n_class
        steps = np.log(self.transition)[classes[:, :-1], classes[:, 1:]]
        return steps + np.log(self._of_class)[ids[:, 1:]]


def stationary_of(transition: np.ndarray) -> np.ndarray:
    """Return the (C,) distribution with pi A = pi, of a matrix whose rows sum to 1 and whose entries are positive."""
    n = len(transition)
    equations = np.vstack([transition.T - np.eye(n), np.ones(n)])
    return np.linalg.lstsq(equations, np.append(np.zeros(n), 1.0), rcond=None)[0]


def build_language(name: str, vocab_size: int, seed: int = 0) -> Language:
    """Return the language called `zipf`, of one class, or `markov`. The seed decides the transitions of the latter."""
    return Language(vocab_size, 1 if name == "zipf" else 32, seed)
