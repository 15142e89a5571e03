"""Figures of a text that decide which head is worth its cost. Letters: V vocabulary, C sizes of shortlists."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from grouped_lm.data import Corpus
from grouped_lm.system.tables import Table, columns

SIZES = (256, 1_024, 4_096, 16_384)
"""The coverage of so many of the most frequent tokens is shown."""


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """Figures of a training text and its validation text, in tokens of the run's tokenizer."""

    vocab_size: int
    documents: int
    tokens: int
    types: int
    """Different tokens that occur."""
    seen_once: int
    """Types that occur once."""
    bytes_per_token: float
    """UTF-8 bytes of the documents over tokens. Borders of documents are tokens without bytes."""
    coverage: dict[int, float]
    """Share of the text that the C most frequent types cover, for each C in `SIZES` below the number of types."""
    passes: float
    """How often a training of the given tokens reads the text."""
    valid_documents: int
    valid_tokens: int
    valid_types: int
    valid_unseen: float
    """Share of the validation text in tokens that never occur in the training text."""

    def values(self) -> dict[str, Any]:
        """Return the figures ready for JSON."""
        return asdict(self)

    def table(self, name: str, steps: int) -> Table:
        """Return the figures one per line; `name` is that of the text, and `steps` the length of a full run."""
        rows: list[tuple[str, str]] = [
            ("documents", f"{self.documents:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("bytes per token", f"{self.bytes_per_token:.2f}"),
            ("types (different tokens)", f"{self.types:,} of {self.vocab_size:,}"),
            ("types that occur once", f"{self.seen_once:,}"),
            *((f"share of the {size:,} most frequent", f"{share:.1%}") for size, share in self.coverage.items()),
            (f"passes in {steps:,} steps", f"{self.passes:.2f}"),
            ("validation: documents", f"{self.valid_documents:,}"),
            ("validation: tokens", f"{self.valid_tokens:,}"),
            ("validation: tokens never seen in training", f"{self.valid_unseen:.3%}"),
        ]
        cells = [{"what": what, "figure": figure} for what, figure in rows]
        return Table(columns=columns("figure = what; value = figure {:>}"), rows=cells, title=f"The text: {name}")


def measure_text(corpus: Corpus, train_tokens: int) -> TextFigures:
    """Return the figures of a corpus; `train_tokens` are those of a whole training."""
    counts, valid = corpus.train.counts(), corpus.valid.counts()
    return TextFigures(
        documents=corpus.train.num_documents,
        bytes_per_token=corpus.train.text_bytes / corpus.train.num_tokens,
        passes=train_tokens / corpus.train.num_tokens,
        valid_documents=corpus.valid.num_documents,
        **measure_counts(counts, valid),
    )


def measure_counts(counts: np.ndarray, valid: np.ndarray) -> dict[str, Any]:
    """Return the fields of `TextFigures` that follow from the (V,) occurrences in the two texts."""
    by_frequency = np.sort(counts[counts > 0])[::-1]
    total, reached = int(by_frequency.sum()), by_frequency.cumsum()
    return {
        "vocab_size": len(counts),
        "tokens": total,
        "types": len(by_frequency),
        "seen_once": int((counts == 1).sum()),
        "coverage": {size: float(reached[size - 1] / total) for size in SIZES if size < len(by_frequency)},
        "valid_tokens": int(valid.sum()),
        "valid_types": int((valid > 0).sum()),
        "valid_unseen": float(valid[counts == 0].sum() / valid.sum()),
    }
