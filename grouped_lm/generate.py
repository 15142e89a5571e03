"""Text generation, one token at a time, from the exact joint distribution of any head.

Letters: B texts written at once, D width, V vocabulary.
"""

import codecs
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grouped_lm.config import Config, check_range
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.heads.base import Head
from grouped_lm.heads.decoding.truncation import Truncation, draw_from
from grouped_lm.models.gpt2 import KVCache
from grouped_lm.models.lm import LanguageModel
from grouped_lm.runs.load import load_model, own_tokenizer
from grouped_lm.system.runtime import resolve_device, set_threads

BATCH = 32
"""Largest number of texts written at once."""
EOT, STOP, LENGTH = "end_of_text", "stop", "length"
"""Why a text ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        ConfigError: a value out of its range.
    """

    temperature: float = 0.8
    """T in [0, 1e6]: tokens that the truncation keeps get weight p^(1/T). 0 takes the likeliest, of equals the lowest
    id."""
    truncation: Truncation = field(default_factory=Truncation)
    """Which tokens may be drawn, by the model's own probabilities; with a penalty, by those that it gives."""
    repetition_penalty: float = 1.0
    """In [1, 1e6]: log-probabilities of tokens in the context are multiplied by it. Keskar et al. 2019 (arXiv
    1909.05858) divide logits, but a two-step head has no logits of the joint distribution. Takes a V-wide pass."""

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0, 1e6)
        check_range("repetition-penalty", self.repetition_penalty, 1, 1e6)


def next_tokens(
    head: Head, states: Tensor, sampling: Sampling, context: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return (B,) ids of the tokens that follow (B, D) states; `context` has the (B, T) ids read so far."""
    if sampling.repetition_penalty == 1:
        drawn = head.sample(states, generator, temperature=sampling.temperature, truncation=sampling.truncation)
        return drawn.squeeze(1)
    log_prob = head.log_prob(states)
    seen = log_prob.gather(1, context)
    log_prob = log_prob.scatter(1, context, seen * sampling.repetition_penalty).log_softmax(1)
    if sampling.temperature == 0:
        return log_prob.argmax(1)
    return draw_from(log_prob, sampling.truncation, sampling.temperature, 1, generator).squeeze(1)


class Context:
    """Unfinished texts: the ids of B texts of one length, and the body's cache of them.

    Beyond `block_size` the window slides: every token sees the last `block_size` ones, at positions that begin at 0
    again. So nothing cached can be used, and each step reads the whole window, as it does with `use_cache=False`.
    The prompt has (B, T) int64 ids on the model's device, T >= 1.
    """

    def __init__(self, model: LanguageModel, prompt_ids: Tensor, use_cache: bool = True) -> None:
        self._model, self.ids, self._use_cache = model, prompt_ids, use_cache
        body: Any = model.body
        self._block_size: int = body.block_size
        self._cache = KVCache(len(body.h), self._block_size)

    @property
    def slides(self) -> bool:
        """Whether the texts are longer than the window."""
        return self.ids.shape[1] > self._block_size

    def states(self) -> Tensor:
        """Return the (B, D) states of the last tokens."""
        if self.slides or not self._use_cache:
            return self._model.hidden(self.ids[:, -self._block_size :])[:, -1]
        return self._model.hidden(self.ids[:, self._cache.length :], self._cache)[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Add (B,) tokens."""
        self.ids = torch.cat([self.ids, tokens.unsqueeze(1)], dim=1)

    def select(self, rows: Tensor) -> None:
        """Continue with these rows of the B texts alone."""
        self.ids = self.ids[rows]
        self._cache.select(rows)


class TextStream:
    """Turns the bytes of tokens into text that can be shown: whole characters, and no beginning of a stop text.

    The texts `stops` end the writing, and are not shown.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str]) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.text = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        return self._release(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def close(self) -> str:
        """Return the rest of the text; no token follows."""
        return self._release(self._decoder.decode(b"", final=True), last=True)

    def _release(self, text: str, last: bool = False) -> str:
        if self.stopped:
            return ""
        self._held += text
        ends = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        self.stopped = bool(ends)
        keep_back = 0 if last or ends else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown = self._held[: min(ends) if ends else len(self._held) - keep_back]
        self._held = self._held[len(shown) :]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return the longest n such that `text` ends with the first n characters of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(kw_only=True, slots=True)
class Text:
    """One text that a model wrote."""

    prompt: str
    text: str = ""  # The text after the prompt, without end-of-text and stop text
    tokens: list[int] = field(default_factory=list)  # New ids, a closing end-of-text included
    log_probs: list[float] = field(default_factory=list)
    """Their log-probabilities under the model, nats, before any truncation, temperature or penalty."""
    finish: str = LENGTH  # `end_of_text`, `stop` or `length`


@dataclass(kw_only=True, slots=True)
class Writing:
    """The options of `write_texts`."""

    num_samples: int = 1
    """Number B of texts, >= 1."""
    max_new_tokens: int = 200
    """Largest number of tokens to write, >= 1."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the next token is chosen."""
    generator: torch.Generator | None = None
    """On the model's device; None is torch's global one."""
    stops: list[str] | None = None
    """Texts that end the writing, besides end-of-text."""
    show: Callable[[str], Any] = lambda _: None
    """Called with every certain piece of the first text."""
    note: Callable[[str], Any] = lambda _: None
    """Called once if the texts become longer than the window."""
    use_cache: bool = True
    """False reads the whole window at every step: the slow line that the cache equals."""


@torch.no_grad()
def write_texts(model: LanguageModel, tokenizer: Tokenizer, prompt: str, **options: Any) -> list[Text]:
    """Return `num_samples` texts that the model, in evaluation mode, writes at once.

    An end-of-text comes before the prompt, as before every story in training. The options are fields of `Writing`.
    """
    writing = Writing(**options)
    num_samples = writing.num_samples
    prompt_ids, device = [tokenizer.eot_id, *tokenizer.encode(prompt)], next(model.parameters()).device
    context = Context(model, torch.tensor([prompt_ids] * num_samples, device=device), writing.use_cache)
    texts = [Text(prompt=prompt) for _ in range(num_samples)]
    streams = [TextStream(tokenizer, writing.stops or []) for _ in range(num_samples)]
    active, noted = list(range(num_samples)), False
    with model.head.frozen():
        for _ in range(writing.max_new_tokens):
            if context.slides and not noted:
                noted = True
                size = model.body.block_size
                writing.note(f"longer than model.block_size={size}: every token sees that many before it, no more")
            states = context.states()
            tokens = next_tokens(model.head, states, writing.sampling, context.ids, writing.generator)
            log_probs = model.head.target_log_prob(states, tokens).tolist()
            context.append(tokens)
            for index, token, log_prob in zip(active, tokens.tolist(), log_probs, strict=True):
                text, stream = texts[index], streams[index]
                text.tokens.append(token)
                text.log_probs.append(log_prob)
                piece = "" if token == tokenizer.eot_id else stream.feed(token)
                text.finish = EOT if token == tokenizer.eot_id else STOP if stream.stopped else LENGTH
                if index == 0 and piece:
                    writing.show(piece)
            unfinished = [row for row, index in enumerate(active) if texts[index].finish == LENGTH]
            if not unfinished:
                break
            if len(unfinished) < len(active):
                active = [active[row] for row in unfinished]
                context.select(torch.tensor(unfinished, device=device))
    for index, (text, stream) in enumerate(zip(texts, streams, strict=True)):
        piece = stream.close()
        if index == 0 and piece:
            writing.show(piece)
        text.text = stream.text
    return texts


def generate_texts(
    run_dir: Path, config: Config, *, prompt: str = "", num_samples: int = 1, seed: int = 0, **options: Any
) -> Iterator[Text]:
    """Yield texts that the newest checkpoint of a run writes after `prompt`, in batches of at most BATCH.

    Args:
        run_dir: the run.
        config: the run's, possibly with another device.
        prompt: the beginning of the texts.
        num_samples: number of texts, >= 1.
        seed: of the draws, >= 0.
        options: further fields of `Writing`.

    Raises:
        RunFolderError, CheckpointError: no such run, or no usable checkpoint in it.
    """
    device = resolve_device(config.train.device)
    set_threads(config.train.threads)
    model, _ = load_model(run_dir, config, device)
    tokenizer = build_tokenizer(own_tokenizer(run_dir, config.tokenizer), config.data)
    generator = torch.Generator(device).manual_seed(seed)
    for batch in range(math.ceil(num_samples / BATCH)):
        size = min(BATCH, num_samples - batch * BATCH)
        yield from write_texts(model, tokenizer, prompt, num_samples=size, generator=generator, **options)
        options.pop("note", None)  # noted once
