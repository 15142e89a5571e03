"""TinyTales: repeatable, split-safe, well-formed, and with more entropy per token than a perplexity of 4."""

import hashlib
import math
import random
import re
from itertools import islice

import pytest

from grouped_lm.data.sources import tinytales
from grouped_lm.data.sources.tinytales import generate_stories, generate_story, in_valid, plural, with_article

GOLDEN_SHA256 = "5d938fad98e2a4ae9afb4c6bb5becc1eb490dabbecaa7281638eb4f433a1c0c5"
# Mean GPT-2 tokens per story over 20,000 training stories; the tokenizer is not loaded here to stay quick.
MEAN_TOKENS = 187.8
STORIES = 720  # drawn for the entropy; its standard error is then 1.5 nats of 303


@pytest.fixture(scope="module")
def train() -> list[str]:
    return list(generate_stories(5000, seed=0, split="train"))


@pytest.fixture(scope="module")
def valid() -> list[str]:
    return list(generate_stories(5000, seed=0, split="valid"))


class _Count(float):
    """A random number that adds up the log of the number of choices it decides between."""

    nats = 0.0

    def __mul__(self, choices: float) -> float:
        _Count.nats += math.log(choices)
        return float(self) * choices


def _told(seed: int) -> tuple[str, float, float, list, list]:
    """Draw a story outside any split: text, nats of all choices, nats spent on slots, plot, slots."""
    grammar = tinytales._grammar()
    rng = random.Random(seed)
    _Count.nats = 0.0
    slot_nats = 0.0
    depth = 0
    fillers = list(grammar.fillers)

    def counted(fill):
        def wrapped(draw, env):
            nonlocal slot_nats, depth
            before, depth = _Count.nats, depth + 1
            fill(draw, env)
            depth -= 1
            if depth == 0:  # a slot may fill another one first
                slot_nats += _Count.nats - before

        return wrapped

    def draw() -> _Count:
        return _Count(rng.random())

    grammar.fillers[:] = [counted(fill) for fill in fillers]
    try:
        env = [None] * len(fillers)
        plot = grammar.plots[int(draw() * len(grammar.plots))]
        out: list[str] = []
        for beat in plot:
            grammar.expand([beat], draw, env, out)
    finally:
        grammar.fillers[:] = fillers
    return "".join(out), _Count.nats, slot_nats, list(plot), env


def _parse(node, text: str, starts: dict[int, float], env: list) -> dict[int, float]:
    """Probability of every way through `node`, by the place in the text where it ends."""
    ends: dict[int, float] = {}
    if type(node) is tuple:
        for option in node:
            for end, p in _parse(option, text, starts, env).items():
                ends[end] = ends.get(end, 0.0) + p / len(node)
    elif type(node) is list:
        ends = starts
        for part in node:
            ends = _parse(part, text, ends, env) if ends else {}
    else:
        literal = node if type(node) is str else env[node]
        ends = {at + len(literal): p for at, p in starts.items() if literal and text.startswith(literal, at)}
        if node == "":
            ends = starts
    return ends


def test_golden() -> None:
    text = "\n".join(generate_stories(50, seed=0, split="train"))
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN_SHA256


def test_any_order(train: list[str], valid: list[str]) -> None:
    for index in (4999, 0, 77, 1234):
        assert generate_story(0, "train", index) == train[index]
        assert generate_story(0, "valid", index) == valid[index]


def test_seeds_differ(train: list[str]) -> None:
    assert not set(generate_stories(200, seed=1, split="train")) & set(train)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        generate_story(0, "test", 0)


def test_splits_never_meet(train: list[str], valid: list[str]) -> None:
    assert not any(map(in_valid, train))
    assert all(map(in_valid, valid))
    assert not set(train) & set(valid)
    assert len(set(train)) == 5000
    assert len(set(valid)) == 5000


def test_vocabulary(train: list[str]) -> None:
    found = set(re.findall(r"[a-z]+", " ".join(train).lower()))
    assert 1400 <= len(found) <= 2000


def test_length(train: list[str], valid: list[str]) -> None:
    lengths = [len(story.split()) for story in train + valid]
    assert min(lengths) >= 60
    assert max(lengths) <= 200
    assert 110 <= sum(lengths) / len(lengths) <= 150


def test_clean_text(train: list[str], valid: list[str]) -> None:
    for story in train + valid:
        assert story.isascii()
        assert story == story.strip()
        assert "  " not in story
        assert not re.search(r"[\[\]{}<>|~^_]| [,.!?]|\n\n\n|[^\n]\n[^\n]", story)
        assert story.count('"') % 2 == 0
        assert re.match(r'["A-Z]', story)
        assert story[-1] in '.!?"'


def test_articles(train: list[str]) -> None:
    wrong = re.compile(r"\b[Aa] (?:[aeio]|u(?!ni|se))(?!ne-)|\b[Aa]n (?!honest|hour)(?:[^aeiou\W]|uni|use)")
    for story in islice(train, 2000):
        found = wrong.search(story)
        assert not found, story[found.start() : found.start() + 30]


def test_sentences_start_with_a_capital(train: list[str]) -> None:
    for story in islice(train, 2000):
        assert not re.search(r"(?<=\w)\. [a-z]", story)
        assert not re.search(r"\b(\w+) \1\b", story)


@pytest.mark.parametrize(
    ("noun", "many"), [("mouse", "mice"), ("berry", "berries"), ("fox", "foxes"), ("monkey", "monkeys")]
)
def test_plural(noun: str, many: str) -> None:
    assert plural(noun) == many


def test_with_article() -> None:
    assert with_article("apple") == "an apple"
    assert with_article("unicorn") == "a unicorn"
    assert with_article("old kite") == "an old kite"


def test_entropy() -> None:
    """The choices carry more than ln 4 nats per GPT-2 token, and hardly two ways lead to one text."""
    total = lost = 0.0
    parsed = 0
    for seed in range(STORIES):
        text, nats, slot_nats, plot, env = _told(seed)
        total += nats
        if seed % 12:
            continue
        ways = _parse(plot, text, {0: 1.0}, env)[len(text)]
        drawn = nats - slot_nats - math.log(len(tinytales._grammar().plots))
        lost += drawn + math.log(ways)
        parsed += 1
    assert 0 <= lost / parsed < 0.05 * total / STORIES
    # What the split's and the echoes' redraws take is less than one nat per story.
    assert (total / STORIES - lost / parsed - 1) / MEAN_TOKENS > math.log(4) + 0.15
