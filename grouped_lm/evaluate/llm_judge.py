"""`gvc eval --judge`: stories that a run goes on with, graded by a language model behind an OpenAI-compatible endpoint.

The measure of TinyStories (Eldan and Li 2023, arXiv 2305.07759, section 3): a model completes the beginning of a story,
and a much larger one grades what it wrote. Beginnings and completions are written first, and every answer is kept as it
comes, so that a judge that fails loses nothing: the same command asks for the grades that are missing.
"""

import hashlib
import json
import logging
import math
import os
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from grouped_lm.config import Config, JudgeConfig
from grouped_lm.data import build_tokenizer
from grouped_lm.data.sources.tinytales import generate_stories
from grouped_lm.errors import ConfigError, GvcError
from grouped_lm.generate import Sampling, write_texts
from grouped_lm.models.lm import LanguageModel
from grouped_lm.runs.load import load_model, own_tokenizer
from grouped_lm.system.files import write_json
from grouped_lm.system.runtime import resolve_device, set_threads
from grouped_lm.system.secret_values import hide_secrets

CRITERIA = ("grammar", "creativity", "consistency", "plot")
LOWEST, HIGHEST = 1, 10
BEGINNING = 0.4
"""Share of a story's words that the model is given; it ends within a sentence as a rule."""
SEED = 1
"""Of the stories: those that `data=tinytales` trains on have another, 0, unless told otherwise."""
Say = Callable[[str], Any]

TASK = """\
A small language model was given the beginning of a short story for children, up to the mark ***, and wrote what \
follows the mark. It may break off at the end, which is not its fault.

{beginning}***{completion}

Grade only what follows the mark, each from 1 (very poor) to 10 (as good as a careful human writer):
- grammar: is it correct English?
- creativity: are its ideas more than the obvious ones?
- consistency: does it fit the beginning, its names, things and tone?
- plot: do its events follow from one another and lead somewhere?
Answer with one JSON object and nothing else, like {{"grammar": 5, "creativity": 5, "consistency": 5, "plot": 5}}."""


class JudgeError(GvcError):
    """The endpoint gives no grades; what it gave so far is kept."""


@dataclass(frozen=True, slots=True)
class Story:
    """What is graded."""

    beginning: str
    completion: str

    @property
    def key(self) -> str:
        """A hash of both parts: an answer belongs to the text, whatever file it stands in."""
        return hashlib.sha256(f"{self.beginning}\0{self.completion}".encode()).hexdigest()


def make_beginnings(num: int) -> list[str]:
    """Return the first words of `num` embedded stories, none of which a run with default settings has seen."""
    beginnings = []
    for story in generate_stories(num, SEED, "valid"):
        words = story.split(" ")
        beginnings.append(" ".join(words[: max(1, round(BEGINNING * len(words)))]))
    return beginnings


def write_stories(run: Path, config: Config, say: Say) -> list[Story]:
    """Return the stories of a run's newest checkpoint, from `judge/stories.json` where it has them already.

    Args:
        run: the run folder.
        config: the run's, with `judge`.
        say: told how many are being written.

    Raises:
        RunFolderError, CheckpointError: no such run, or no usable checkpoint in it.
    """
    device = resolve_device(config.train.device)
    set_threads(config.train.threads)
    model, step = load_model(run, config, device)
    judge = config.judge
    asked = {
        "step": step,
        "num_stories": judge.num_stories,
        "max_new_tokens": judge.max_new_tokens,
        "temperature": judge.temperature,
    }
    path = run / "judge" / "stories.json"
    known = read_stories(path, asked)
    if known is not None:
        return known
    say(f"{run}: writing {judge.num_stories} stories")
    tokenizer = build_tokenizer(own_tokenizer(run, config.tokenizer), config.data)
    stories = [
        Story(beginning, complete(model, tokenizer, beginning, judge, index))
        for index, beginning in enumerate(make_beginnings(judge.num_stories))
    ]
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"asked": asked, "stories": [asdict(story) for story in stories]})
    return stories


def complete(model: LanguageModel, tokenizer: Any, beginning: str, judge: JudgeConfig, seed: int) -> str:
    """Return what the model writes after one beginning, drawn from its own distribution at `judge.temperature`."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    sampling = Sampling(temperature=judge.temperature)
    (text,) = write_texts(
        model, tokenizer, beginning, max_new_tokens=judge.max_new_tokens, sampling=sampling, generator=generator
    )
    return text.text


def read_stories(path: Path, asked: dict[str, Any]) -> list[Story] | None:
    """Return the stories of a file, None where it is not there or answers something else than `asked`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            return [Story(str(s["beginning"]), str(s["completion"])) for s in found["stories"]]
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def grade_run(run: Path, config: Config, say: Say) -> dict[str, Any]:
    """Return mean grades of a run's stories, keys `judge/...`; every answer is kept in `judge/answers.jsonl`.

    Grades are in [1, 10]; beside each mean stands the half-width of its 95 % interval (normal, over stories). Tokens
    and cost count every answer that was paid for, useless ones too.

    Args:
        run: the run folder.
        config: the run's, with `judge`.
        say: told how far it is.

    Raises:
        ConfigError: the client is not installed.
        RunFolderError, CheckpointError: no such run, or no usable checkpoint in it.
        JudgeError: the endpoint refuses, is silent, or answers no grades `judge.retries` times beyond the first.
    """
    client = open_client(config.judge)
    stories = write_stories(run, config, say)
    answers = Answers(run / "judge" / "answers.jsonl", config.judge.model)
    missing = [story for story in stories if answers.grades(story) is None]
    for done, story in enumerate(missing, len(stories) - len(missing)):
        say(f"{run}: {config.judge.model} has graded {done} of {len(stories)}")
        grade_story(client, config.judge, story, answers)
    return summarise_grades(stories, answers, config.judge)


class Answers:
    """Every answer of one judge, in a file that only grows: one line each, written before the next is asked for."""

    def __init__(self, path: Path, judge: str) -> None:
        self._path, self._judge = path, judge
        self._rows: list[dict[str, Any]] = []
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        self._end = "" if text.endswith("\n") or not text else "\n"
        for line in text.splitlines():
            self._keep(line)

    def _keep(self, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return  # the end of a write that was cut short
        if isinstance(row, dict) and row.get("judge") == self._judge:
            self._rows.append(row | {"grades": check_grades(row.get("grades"))})

    def add(self, story: Story, grades: dict[str, float] | None, answer: str, tokens: dict[str, int]) -> None:
        """Keep an answer; `grades` is None where it has none."""
        row = {"judge": self._judge, "story": story.key, "grades": grades, "answer": answer, **tokens}
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._end + json.dumps(row, sort_keys=True) + "\n")
        self._end = ""
        self._rows.append(row)

    def grades(self, story: Story) -> dict[str, float] | None:
        """Return the grades of a story, None where there are none yet."""
        return next((row["grades"] for row in self._rows if row.get("story") == story.key and row["grades"]), None)

    def tokens(self, stories: list[Story], kind: str) -> int:
        """Return the tokens of one kind, `prompt_tokens` or `completion_tokens`, of all answers to these stories."""
        keys = {story.key for story in stories}
        counts = [row.get(kind) for row in self._rows if row.get("story") in keys]
        return sum(count for count in counts if isinstance(count, int))


def open_client(judge: JudgeConfig) -> Any:
    """Return a client of the endpoint; its key comes from the environment alone, a local server needs none.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ConfigError(f"--judge needs the openai client ({error}): pip install 'grouped-lm[judge]'") from error
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line per request otherwise
    key = os.environ.get(judge.key_variable) or "none"
    return OpenAI(base_url=judge.base_url, api_key=key, max_retries=judge.retries, timeout=judge.timeout_s)


def grade_story(client: Any, judge: JudgeConfig, story: Story, answers: Answers) -> None:
    """Ask until an answer has grades, and keep every answer.

    Raises:
        JudgeError: see `grade_run`.
    """
    from openai import OpenAIError

    question = TASK.format(beginning=story.beginning, completion=story.completion)
    answer = ""
    for _ in range(judge.retries + 1):
        try:
            reply = client.chat.completions.create(model=judge.model, messages=[{"role": "user", "content": question}])
            answer, tokens = read_reply(reply)
        except OpenAIError as error:
            raise JudgeError(_failure(judge, f"gave no answer: {describe_error(error)}")) from error
        grades = parse_grades(answer)
        answers.add(story, grades, answer, tokens)
        if grades is not None:
            return
    shown = " ".join(answer.split())[:80]
    raise JudgeError(_failure(judge, f"answered {judge.retries + 1} times without grades, last {shown!r}"))


def _failure(judge: JudgeConfig, what: str) -> str:
    return (
        f"{judge.model} at {judge.base_url} {what}; stories and grades so far are kept in judge/, "
        f"the same command goes on (judge.base_url, judge.model; the key is read from ${judge.key_variable})"
    )


def describe_error(error: Exception) -> str:
    """Return a client's error as one line without keys."""
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return hide_secrets(" ".join(f"{error}{cause}".split()))[:200]


def read_reply(reply: Any) -> tuple[str, dict[str, int]]:
    """Return the text and the tokens of a reply, whatever shape the endpoint gave it."""
    choices = getattr(reply, "choices", None) or []
    message = getattr(choices[0], "message", None) if choices else None
    text = getattr(message, "content", None)
    usage = getattr(reply, "usage", None)
    counts = {kind: getattr(usage, kind, None) for kind in ("prompt_tokens", "completion_tokens")}
    return text if isinstance(text, str) else "", {k: v if isinstance(v, int) else 0 for k, v in counts.items()}


def parse_grades(answer: str) -> dict[str, float] | None:
    """Return the grades of the first JSON object that has all four, each a number in [1, 10]; None without one."""
    for match in re.finditer(r"\{[^{}]*\}", answer):
        try:
            found = json.loads(match[0])
        except ValueError:
            continue
        if (grades := check_grades(found)) is not None:
            return grades
    return None


def check_grades(found: Any) -> dict[str, float] | None:
    """Return the four grades of a JSON object, None where one is missing or no number in [1, 10]."""
    grades = [found.get(name) for name in CRITERIA] if isinstance(found, dict) else [None]
    if all(isinstance(g, int | float) and not isinstance(g, bool) and LOWEST <= g <= HIGHEST for g in grades):
        return {name: float(found[name]) for name in CRITERIA}
    return None


def summarise_grades(stories: list[Story], answers: Answers, judge: JudgeConfig) -> dict[str, Any]:
    """Return means, half-widths of their 95 % intervals, and costs."""
    graded = [grades for story in stories if (grades := answers.grades(story)) is not None]
    figures: dict[str, Any] = {"judge/model": judge.model, "judge/stories": len(graded)}
    for name in CRITERIA:
        values = [grades[name] for grades in graded]
        figures[f"judge/{name}"] = statistics.fmean(values)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        figures[f"judge/{name}_half_width"] = 1.96 * spread / math.sqrt(len(values))
    prompt, completion = (answers.tokens(stories, kind) for kind in ("prompt_tokens", "completion_tokens"))
    figures |= {"judge/prompt_tokens": prompt, "judge/completion_tokens": completion}
    if judge.usd_per_million_prompt_tokens is not None and judge.usd_per_million_completion_tokens is not None:
        cost = prompt * judge.usd_per_million_prompt_tokens + completion * judge.usd_per_million_completion_tokens
        figures["judge/cost_usd"] = cost / 1e6
    return figures
