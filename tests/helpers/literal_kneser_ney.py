"""Interpolated modified Kneser-Ney word by word, from the definition: slow, and short enough to be checked by eye."""

from collections import Counter, defaultdict

import numpy as np

EOT, VOCAB = 0, 11


def small_text(length: int = 240, seed: int = 0) -> np.ndarray:
    """Ids 0 to 8 of 11, some much more frequent than others, and documents of some 12 tokens."""
    chances = np.array([3, 12, 8, 5, 4, 3, 2, 1, 1]) / 39
    text = np.random.default_rng(seed).choice(9, size=length, p=chances).astype(np.uint16)
    text[0] = EOT
    return text


HISTORIES = [[], [EOT], [1, 2, 1, 1], [5, EOT, 1, 2], [9, 10, 9, 10], [3, 1, 10, 1], [1] * 9, [2, EOT]]
"""Empty, start of a document, seen, across a border, never seen, seen at its end alone, longer than any order."""


def events(tokens: list[int], order: int) -> list[tuple[tuple[int, ...], int]]:
    """Every predicted token with its longest context: at most order - 1 tokens, back to the last end-of-text."""
    found = []
    for place in range(1, len(tokens)):
        context: tuple[int, ...] = ()
        for token in reversed(tokens[max(0, place - order + 1) : place]):
            context = (token, *context)
            if token == EOT:
                break
        found.append((context, tokens[place]))
    return found


class LiteralKneserNey:
    """Counts of a list of events; discounts are estimated from them or given."""

    def __init__(self, seen, order, discounts=None, min_counts=None, vocab=VOCAB):
        self.order, self.vocab = order, vocab
        self.min_counts = min_counts or [1] * order
        before = defaultdict(set)
        times = Counter()
        for context, word in seen:
            times[(context, word)] += 1
            for cut in range(1, len(context) + 1):
                before[(context[cut:], word)].add(context[cut - 1])
        self.counts = [defaultdict(dict) for _ in range(order)]
        for (context, word), count in times.items():  # longest, or nothing can stand before end-of-text
            self.counts[len(context)][context][word] = count
        for (context, word), tokens in before.items():
            self.counts[len(context)][context][word] = len(tokens)
        self.discounts = discounts or [self.estimate(k) for k in range(order)]

    def estimate(self, k):
        sizes = Counter(count for words in self.counts[k].values() for count in words.values())
        result = [0, 0.5, 1.0, 1.5]
        for i in (1, 2, 3):
            if sizes[1] and sizes[i]:
                ratio = sizes[1] / (sizes[1] + 2 * sizes[2])
                estimate = i - (i + 1) * ratio * sizes[i + 1] / sizes[i]
                if 0 < estimate < i:
                    result[i] = estimate
        return result

    def prob(self, word, context):
        """p(word | context), the context cut as `events` does."""
        k = len(context)
        shorter = 1 / self.vocab if k == 0 else self.prob(word, context[1:])
        words = self.counts[k].get(context, {})
        total = sum(words.values())
        if total == 0:
            return shorter
        kept = {w: c - self.discounts[k][min(c, 3)] for w, c in words.items() if c >= self.min_counts[k]}
        return kept.get(word, 0) / total + (1 - sum(kept.values()) / total) * shorter
