"""Two deterministic tasks from held-out stories: choose the last sentence out of four, and predict the last word.

They follow the Story Cloze test (Mostafazadeh et al. 2016, arXiv 1604.01696) and LAMBADA (Paperno et al. 2016,
arXiv 1606.06031), and work for any text with documents. Both compare log-probabilities of continuations, which
lm-evaluation-harness asks for too.

Letters: B windows per batch, T window.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.evaluate.scoring import Window, iter_batches
from grouped_lm.models.lm import LanguageModel

N_CHOICES = 4
MOST_ITEMS = 500
"""The first so many suitable stories are used."""
Pair = tuple[list[int], list[int]]
"""Ids of a context and of its continuation; both have at least one token."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A story without its last sentence, and four last sentences with the white space before them."""

    context: str
    options: list[str]
    answer: int
    """Index of the right one, in [0, 4)."""


@dataclass(frozen=True, slots=True)
class Cloze:
    """A story up to its last word, and that word with the white space before it."""

    context: str
    word: str


def split_last_sentence(story: str) -> tuple[str, str] | None:
    """Return a story without its last sentence, and that sentence; None if there is only one."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"'”’]?(?=\s+\S)", story.rstrip())]
    return (story[: ends[-1]], story.rstrip()[ends[-1] :]) if ends else None


def make_choices(stories: Iterable[str], seed: int = 0, most: int = MOST_ITEMS) -> list[Choice]:
    """Return one task per story of at least two sentences; the wrong endings come from three other stories."""
    parts = [part for story in stories if (part := split_last_sentence(story)) is not None][:most]
    draws = random.Random(seed)
    choices = []
    for context, ending in parts:
        others = sorted({other for _, other in parts} - {ending})
        if len(others) < N_CHOICES - 1:
            continue
        options = [ending, *draws.sample(others, N_CHOICES - 1)]
        draws.shuffle(options)
        choices.append(Choice(context, options, options.index(ending)))
    return choices


def make_clozes(stories: Iterable[str], most: int = MOST_ITEMS) -> list[Cloze]:
    """Return one task per story whose last word occurs earlier in the story, so that it can be known."""
    clozes = []
    for story in stories:
        match = re.search(r"(\s\w+)[^\w\s]*\s*$", story)
        if match and re.search(rf"\b{re.escape(match[1].strip())}\b", story[: match.start()]):
            clozes.append(Cloze(story[: match.start()], match[1]))
    return clozes[:most]


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of both tasks, and their token ids."""

    choices: list[Choice]
    endings: list[Pair]
    """Four for each choice."""
    words: list[Pair]
    """One for each cloze."""

    def n_tokens(self, block_size: int) -> int:
        """Return the number of tokens that a model reads."""
        return sum(min(block_size, len(context) + len(end)) for context, end in self.endings + self.words)


def make_questions(tokenizer: Tokenizer, stories: list[str]) -> Questions:
    """Return the questions from all suitable stories."""

    def encode(context: str, end: str) -> Pair:
        return [tokenizer.eot_id, *tokenizer.encode(context)], tokenizer.encode(end)

    choices = make_choices(stories)
    endings = [encode(choice.context, option) for choice in choices for option in choice.options]
    return Questions(choices, endings, [encode(cloze.context, cloze.word) for cloze in make_clozes(stories)])


def score_tasks(
    model: LanguageModel, questions: Questions, batch_size: int, done: Callable[[float], object] = lambda tokens: None
) -> dict[str, Any]:
    """Return the accuracy and the number of questions of both tasks; the model is in evaluation mode.

    A choice is right if the right ending has the highest log-probability per byte. A cloze is right if greedy decoding
    generates the word. `done` is called after each batch with its number of tokens.
    """
    metrics: dict[str, Any] = {}
    choices = questions.choices
    if choices:
        scores = [total for total, _ in log_likelihoods(model, questions.endings, batch_size, done)]
        right = 0
        for number, choice in enumerate(choices):
            own = scores[number * N_CHOICES : (number + 1) * N_CHOICES]
            per_byte = [s / len(option.encode()) for s, option in zip(own, choice.options, strict=True)]
            right += per_byte.index(max(per_byte)) == choice.answer
        metrics |= {"task/choice_accuracy": right / len(choices), "task/choices": len(choices)}
    if questions.words:
        hits = log_likelihoods(model, questions.words, batch_size, done)
        metrics |= {"task/cloze_accuracy": sum(hit for _, hit in hits) / len(hits), "task/clozes": len(hits)}
    return metrics


@torch.no_grad()
def log_likelihoods(
    model: LanguageModel, pairs: list[Pair], batch_size: int, done: Callable[[float], object] = lambda tokens: None
) -> list[tuple[float, bool]]:
    """Return the log-probability of each continuation in nats, and whether greedy decoding generates it.

    If context and continuation have more than block_size + 1 tokens, the beginning of the context is cut off. A longer
    continuation is split into several windows. The model is in evaluation mode.
    """
    block_size: Any = model.body.block_size
    windows: list[Window] = []
    tokens: list[int] = []
    pair_of: list[int] = []
    for index, pair in enumerate(pairs):
        for inputs, continuation in split_long(*pair, block_size):
            stop = len(tokens) + len(inputs)
            windows.append(Window(len(tokens), stop - len(continuation), stop))
            tokens += [*inputs, continuation[-1]]
            pair_of += [index] * (len(inputs) + 1)
    totals, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    device = next(model.parameters()).device
    for input_ids, targets, indices, _ in iter_batches(np.array(tokens), windows, batch_size):
        counted = targets != IGNORE_INDEX
        hidden, target_ids = model.hidden(input_ids.to(device))[counted.to(device)], targets[counted].to(device)
        ranks = model.head.ranks(hidden, target_ids, 1)
        pairs_here = np.array(pair_of)[indices]
        np.add.at(totals, pairs_here, ranks.log_prob.double().cpu().numpy())
        np.logical_and.at(greedy, pairs_here, (ranks.rank == 0).cpu().numpy())
        done(input_ids.numel())
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))


def split_long(context: list[int], continuation: list[int], block_size: int) -> list[Pair]:
    """Return windows (inputs, targets) in which every token of the continuation is a target once.

    The first window has as much context as fits. Later windows do not overlap, as in `gvc eval` by default.
    """
    n_context = max(1, block_size + 1 - len(continuation))
    ids = context[-n_context:] + continuation
    first = len(ids) - len(continuation) - 1  # input whose target is the continuation's first token
    edges = [0, *range(block_size, len(ids) - 1, block_size), len(ids) - 1]
    return [
        (ids[start:stop], ids[max(start, first) + 1 : stop + 1])
        for start, stop in itertools.pairwise(edges)
        if stop > first
    ]
