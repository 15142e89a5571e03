"""Two deterministic tasks from held-out stories: choose the last sentence out of four, and predict the last word.

They follow the Story Cloze test (Mostafazadeh et al. 2016, arXiv 1604.01696) and LAMBADA (Paperno et al. 2016,
arXiv 1606.06031), and work for any text with documents.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.evaluate.continuations import log_likelihoods
from grouped_lm.models.lm import LanguageModel

N_CHOICES = 4
MOST_ITEMS = 500
"""The first so many suitable stories are used."""


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


def score_tasks(model: LanguageModel, tokenizer: Tokenizer, stories: list[str], batch_size: int) -> dict[str, Any]:
    """Return the accuracy and the number of questions of both tasks.

    A choice is right if the right ending has the highest log-probability per byte. A cloze is right if greedy decoding
    generates the word.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        stories: held-out documents.
        batch_size: texts per batch, >= 1.
    """
    metrics: dict[str, Any] = {}

    def encode(context: str, end: str) -> tuple[list[int], list[int]]:
        return [tokenizer.eot_id, *tokenizer.encode(context)], tokenizer.encode(end)

    choices = make_choices(stories)
    if choices:
        pairs = [encode(choice.context, option) for choice in choices for option in choice.options]
        scores = [total for total, _ in log_likelihoods(model, pairs, batch_size)]
        right = 0
        for number, choice in enumerate(choices):
            own = scores[number * N_CHOICES : (number + 1) * N_CHOICES]
            per_byte = [s / len(option.encode()) for s, option in zip(own, choice.options, strict=True)]
            right += per_byte.index(max(per_byte)) == choice.answer
        metrics |= {"task/choice_accuracy": right / len(choices), "task/choices": len(choices)}
    clozes = make_clozes(stories)
    if clozes:
        hits = log_likelihoods(model, [encode(cloze.context, cloze.word) for cloze in clozes], batch_size)
        metrics |= {"task/cloze_accuracy": sum(hit for _, hit in hits) / len(clozes), "task/clozes": len(clozes)}
    return metrics
