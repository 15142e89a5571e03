"""Metrics from the losses of tokens: units, accuracies, calibration, and means by frequency, position and group.

Letters: N targets, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from grouped_lm.evaluate.scoring import PARTS, TokenScores

DECILES = 10
ECE_BINS = 15


def loss_metrics(totals: Mapping[str, float], n_targets: int, text_bytes: int) -> dict[str, float]:
    """Return the mean loss in nats per token, perplexity, bits per byte, and the means of the parts that exist.

    `totals` are sums over all targets, end-of-text included, by the keys of `PARTS`; `nll` in nats. `text_bytes` are
    the UTF-8 bytes of the documents; end-of-text has none. Both numbers are > 0.
    """
    loss = totals["nll"] / n_targets
    metrics = {
        "val/loss": loss,
        "val/perplexity": math.exp(min(loss, 700.0)),
        "val/bits_per_byte": totals["nll"] / math.log(2) / text_bytes,
    }
    return metrics | {PARTS[key]: total / n_targets for key, total in totals.items()}


def summarise(scores: TokenScores, text_bytes: int, words: int, is_text: np.ndarray) -> dict[str, float]:
    """Return the metrics of the whole text, summed in fp64.

    The documents have `text_bytes` UTF-8 bytes, and `words` parts between white space. `is_text` is (N,) bool, False at
    end-of-text, which belongs to no word.
    """
    totals = {key: float(values.sum()) for key in PARTS if (values := getattr(scores, key)) is not None}
    metrics = loss_metrics(totals, len(scores.nll), text_bytes) | {
        "val/perplexity_per_word": math.exp(min(float(scores.nll[is_text].sum()) / max(1, words), 700.0)),
        "val/top1_accuracy": float(scores.top1.mean()),
        "val/top5_accuracy": float(scores.top5.mean()),
        "val/calibration_error": calibration_error(scores.confidence, scores.top1),
    }
    if scores.group_confidence is not None and scores.group_correct is not None:
        metrics["val/group_calibration_error"] = calibration_error(scores.group_confidence, scores.group_correct)
    return metrics


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error: mean |confidence - accuracy| over equal bins, weighted by bin size.

    Source: Guo et al. 2017 (arXiv 1706.04599), with 15 bins.
    """
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def mean_by(labels: np.ndarray, scores: TokenScores, names: list[str]) -> list[dict[str, Any]]:
    """Return the name, mean loss, top-1 accuracy and number of targets of every label 0, 1, ... that occurs."""
    size = len(names)
    count = np.bincount(labels, minlength=size)
    loss = np.bincount(labels, weights=scores.nll, minlength=size)
    hits = np.bincount(labels, weights=scores.top1, minlength=size)
    return [
        {"name": name, "tokens": int(n), "loss": float(total / n), "top1_accuracy": float(right / n)}
        for name, n, total, right in zip(names, count, loss, hits, strict=True)
        if n
    ]


def by_frequency(scores: TokenScores, counts: np.ndarray) -> list[dict[str, Any]]:
    """Return means by decile of training frequency; each decile has a tenth of all occurrences.

    Tokens are sorted by their (V,) training counts. A token belongs to the decile that contains the middle of its
    occurrences, so a very frequent token leaves some deciles empty. Tokens without an occurrence have their own bin.
    """
    order = np.argsort(-counts, kind="stable")
    middle = np.cumsum(counts[order]) - counts[order] / 2
    decile = np.empty(len(counts), np.int64)
    decile[order] = np.minimum(DECILES * middle / max(1, counts.sum()), DECILES - 1).astype(int)
    decile[counts == 0] = DECILES
    names = [f"decile {number}" for number in range(1, DECILES + 1)]
    names[0], names[-1] = "decile 1 (most frequent)", "decile 10 (rarest)"
    return mean_by(decile[scores.targets], scores, [*names, "never seen in training"])


def by_position(scores: TokenScores) -> list[dict[str, Any]]:
    """Return means by the number of tokens before the target in its window: 1, 2-3, 4-7, 8-15, ..."""
    octave = np.floor(np.log2(scores.position + 1)).astype(int)
    names = [f"{2**i}" if i == 0 else f"{2**i}-{2 ** (i + 1) - 1}" for i in range(octave.max() + 1)]
    return mean_by(octave, scores, names)


def by_group(scores: TokenScores, token_to_group: np.ndarray) -> list[dict[str, Any]]:
    """Return means by the target's group; `token_to_group` is (V,) int64, -1 for tokens without a group."""
    n_group = int(token_to_group.max()) + 1
    names = ["alone", *(f"group {number}" for number in range(n_group))]
    return mean_by(token_to_group[scores.targets] + 1, scores, names)


def sum_by_story(nll: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (documents,) nats and (documents,) numbers of targets, with the end-of-text after each document.

    `nll` has (N,) nats; `starts` has the (documents,) index of every document's first token.
    """
    first = np.asarray(starts) - 1  # target i is token i + 1
    return np.add.reduceat(nll, first), np.diff([*first, len(nll)])


def sample_metrics(texts: list[list[int]], eot_id: int) -> dict[str, float]:
    """Return metrics of generated texts, each with its end-of-text, that need no reference text.

    Returns:
        distinct-n: different n-grams over all n-grams of all texts (Li et al. 2016, arXiv 1510.03055). repetition_4:
        share of 4-grams that occur earlier in the same text (Welleck et al. 2020, arXiv 1908.04319). end_of_text:
        share of texts that end. mean_tokens: mean length.
    """
    bodies = [[token for token in text if token != eot_id] for text in texts]
    metrics = {}
    for n in (1, 2, 3):
        grams = Counter(gram for body in bodies for gram in ngrams(body, n))
        metrics[f"sample/distinct_{n}"] = len(grams) / max(1, grams.total())
    fours = [ngrams(body, 4) for body in bodies]
    repeated = sum(len(grams) - len(set(grams)) for grams in fours)
    metrics["sample/repetition_4"] = repeated / max(1, sum(map(len, fours)))
    metrics["sample/end_of_text"] = sum(text[-1:] == [eot_id] for text in texts) / len(texts)
    metrics["sample/mean_tokens"] = sum(map(len, bodies)) / len(texts)
    return metrics


def ngrams(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    """Return all n-grams, in order."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))
