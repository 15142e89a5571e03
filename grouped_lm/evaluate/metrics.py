"""From scores to figures: losses in several units, accuracies, by frequency, position and group, calibration.

Letters: N targets, V vocabulary.
"""

import math
from collections import Counter
from typing import Any

import numpy as np

from grouped_lm.evaluate.scoring import Scores

DECILES = 10
ECE_BINS = 15


def summarise(scores: Scores, text_bytes: int, words: int, is_text: np.ndarray) -> dict[str, float]:
    """Return the figures of the whole text, sums in fp64, by the keys of the record.

    Args:
        scores: of every target.
        text_bytes: UTF-8 bytes of the documents, > 0.
        words: parts of the documents between white space.
        is_text: (N,) bool, False at end-of-text, which is no part of any word.
    """
    total, n_targets = float(scores.nll.sum()), len(scores.nll)
    figures = {
        "val/loss": total / n_targets,
        "val/perplexity": math.exp(min(total / n_targets, 700.0)),
        "val/bits_per_byte": total / math.log(2) / text_bytes,
        "val/perplexity_per_word": math.exp(min(float(scores.nll[is_text].sum()) / max(1, words), 700.0)),
        "val/top1_accuracy": float(scores.top1.mean()),
        "val/top5_accuracy": float(scores.top5.mean()),
        "val/calibration_error": calibration_error(scores.confidence, scores.top1),
    }
    parts = {
        "val/loss_group": scores.group_nll,
        "val/loss_token": scores.token_nll,
        "val/group_accuracy": scores.group_correct,
        "val/token_in_group_accuracy": scores.token_correct,
    }
    figures |= {key: float(values.sum()) / n_targets for key, values in parts.items() if values is not None}
    if scores.group_confidence is not None and scores.group_correct is not None:
        figures["val/group_calibration_error"] = calibration_error(scores.group_confidence, scores.group_correct)
    return figures


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error: mean |confidence - accuracy| over equal bins, weighted by their sizes.

    Source: Guo et al. 2017 (arXiv 1706.04599), with 15 bins.
    """
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def mean_by(labels: np.ndarray, scores: Scores, names: list[str]) -> list[dict[str, Any]]:
    """Return loss, top-1 accuracy and count for every label 0, 1, ... that occurs, under its name."""
    size = len(names)
    count = np.bincount(labels, minlength=size)
    loss = np.bincount(labels, weights=scores.nll, minlength=size)
    hits = np.bincount(labels, weights=scores.top1, minlength=size)
    return [
        {"name": name, "tokens": int(n), "loss": float(total / n), "top1_accuracy": float(right / n)}
        for name, n, total, right in zip(names, count, loss, hits, strict=True)
        if n
    ]


def by_frequency(scores: Scores, counts: np.ndarray) -> list[dict[str, Any]]:
    """Return means by decile: tokens sorted by (V,) training counts, each decile a tenth of the occurrences.

    A token belongs to the decile in which the middle of its occurrences lies, so that one token may fill several
    deciles and leave the next ones empty; tokens that training never saw have a bin of their own.
    """
    order = np.argsort(-counts, kind="stable")
    middle = np.cumsum(counts[order]) - counts[order] / 2
    decile = np.empty(len(counts), np.int64)
    decile[order] = np.minimum(DECILES * middle / max(1, counts.sum()), DECILES - 1).astype(int)
    decile[counts == 0] = DECILES
    names = [f"decile {number}" for number in range(1, DECILES + 1)]
    names[0], names[-1] = "decile 1 (most frequent)", "decile 10 (rarest)"
    return mean_by(decile[scores.targets], scores, [*names, "never seen in training"])


def by_position(scores: Scores) -> list[dict[str, Any]]:
    """Return means by the tokens read before the target: 1, 2-3, 4-7, 8-15, ..."""
    octave = np.floor(np.log2(scores.position + 1)).astype(int)
    names = [f"{2**i}" if i == 0 else f"{2**i}-{2 ** (i + 1) - 1}" for i in range(octave.max() + 1)]
    return mean_by(octave, scores, names)


def by_group(scores: Scores, token_to_group: np.ndarray) -> list[dict[str, Any]]:
    """Return means by the target's group, (V,) int64 of -1 for tokens that stand alone."""
    n_group = int(token_to_group.max()) + 1
    names = ["alone", *(f"group {number}" for number in range(n_group))]
    return mean_by(token_to_group[scores.targets] + 1, scores, names)


def sum_by_story(nll: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (documents,) nats and targets of every story, its closing end-of-text included.

    Args:
        nll: (N,).
        starts: (documents,) index in the text of every document's first token.
    """
    places = np.asarray(starts) - 1  # target i is token i + 1
    return np.add.reduceat(nll, places), np.diff([*places, len(nll)])


def text_measures(texts: list[list[int]], eot_id: int) -> dict[str, float]:
    """Return what can be said of written texts without a reference.

    Args:
        texts: new ids of each text, a closing end-of-text included.
        eot_id: id of end-of-text.

    Returns:
        distinct-n, different n-grams over all n-grams of all texts (Li et al. 2016, arXiv 1510.03055); the share of
        4-grams that stood in the same text before (Welleck et al. 2020, arXiv 1908.04319); the share of texts that
        end; mean tokens.
    """
    bodies = [[token for token in text if token != eot_id] for text in texts]
    figures = {}
    for n in (1, 2, 3):
        grams = Counter(gram for body in bodies for gram in ngrams(body, n))
        figures[f"sample/distinct_{n}"] = len(grams) / max(1, grams.total())
    fours = [ngrams(body, 4) for body in bodies]
    repeated = sum(len(grams) - len(set(grams)) for grams in fours)
    figures["sample/repetition_4"] = repeated / max(1, sum(map(len, fours)))
    figures["sample/end_of_text"] = sum(text[-1:] == [eot_id] for text in texts) / len(texts)
    figures["sample/mean_tokens"] = sum(map(len, bodies)) / len(texts)
    return figures


def ngrams(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    """Return all runs of n tokens, in order."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))
