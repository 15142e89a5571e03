"""Grade a run's stories with a large language model behind an OpenAI-compatible endpoint (`gvc eval --judge`).

TinyStories (Eldan and Li 2023, arXiv 2305.07759, section 3) uses this measure: a small model completes the beginning of
a story, and a much larger one grades the completion. All stories are generated and saved first. Each answer is saved
when it arrives, so after a failure the same command asks only for the missing grades.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from grouped_lm.config import Config, JudgeConfig
from grouped_lm.data import build_tokenizer
from grouped_lm.data.sources.tinytales import generate_stories
from grouped_lm.errors import ConfigError, GvcError
from grouped_lm.generate import Sampling, write_texts
from grouped_lm.runs.load import load_config, load_model, own_tokenizer
from grouped_lm.system.files import read_json_dict, write_json
from grouped_lm.system.runtime import resolve_device, set_threads
from grouped_lm.system.secret_values import hide_secrets

CRITERIA = ("grammar", "creativity", "consistency", "plot")
LOWEST, HIGHEST = 1, 10
BEGINNING = 0.4
"""The model gets this share of a story's words; the end is usually inside a sentence."""
SEED = 1
"""Seed of the stories. The default training text of `data=tinytales` has another one, 0."""
TASK = files("grouped_lm.evaluate").joinpath("llm_judge.txt").read_text(encoding="utf-8").rstrip("\n")
"""The question, in which `beginning` and `completion` are filled in."""


class JudgeError(GvcError):
    """The endpoint gives no grades. The grades so far are saved."""


@dataclass(frozen=True, slots=True)
class Story:
    """A beginning, and the completion that is graded."""

    beginning: str
    completion: str

    @property
    def key(self) -> str:
        """A hash of both parts, by which answers are found."""
        return hashlib.sha256(f"{self.beginning}\0{self.completion}".encode()).hexdigest()


def make_beginnings(num: int) -> list[str]:
    """Return the first words of `num` embedded stories that a run with default settings has not seen."""
    stories = [story.split(" ") for story in generate_stories(num, SEED, "valid")]
    return [" ".join(words[: max(1, round(BEGINNING * len(words)))]) for words in stories]


def write_stories(run: Path, config: Config, say: Callable[[str], Any]) -> list[Story]:
    """Return the stories of a run's newest checkpoint, from `judge/stories.json` if they are there."""
    device = resolve_device(config.train.device)
    set_threads(config.train.threads)
    model, step = load_model(run, config, device)
    judge = config.judge
    asked = {"step": step} | {key: getattr(judge, key) for key in ("num_stories", "max_new_tokens", "temperature")}
    if config.prior != load_config(run).prior:
        asked["prior"] = config.prior.name
    path = run / "judge" / "stories.json"
    with contextlib.suppress(TypeError, KeyError):
        saved = read_json_dict(path) or {}
        if saved["asked"] == asked:  # other settings make other stories
            return [Story(str(story["beginning"]), str(story["completion"])) for story in saved["stories"]]
    say(f"{run}: writing {judge.num_stories} stories")
    tokenizer = build_tokenizer(own_tokenizer(run, config.tokenizer), config.data)
    sampling = Sampling(temperature=judge.temperature)
    stories = []
    for index, beginning in enumerate(make_beginnings(judge.num_stories)):
        generator = torch.Generator(device).manual_seed(index)
        (text,) = write_texts(
            model, tokenizer, beginning, max_new_tokens=judge.max_new_tokens, sampling=sampling, generator=generator
        )
        stories.append(Story(beginning, text.text))
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"asked": asked, "stories": [asdict(story) for story in stories]})
    return stories


def grade_run(run: Path, config: Config, say: Callable[[str], Any]) -> dict[str, Any]:
    """Return the mean grades of a run's stories as `judge/...`, and save every answer in `judge/answers.jsonl`.

    Grades are in [1, 10]. Each mean has the half-width of its 95 % interval (normal, over stories). Tokens and cost
    include answers without grades. `say` prints the progress.

    Raises:
        ConfigError: the client is not installed.
        RunFolderError, CheckpointError: there is no such run, or no usable checkpoint.
        JudgeError: the endpoint refuses, does not answer, or gives no grades in `judge.retries` + 1 answers.
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
    """All answers of one judge, in a file with one line per answer."""

    def __init__(self, path: Path, judge: str) -> None:
        self._path, self._judge = path, judge
        self._rows: list[dict[str, Any]] = []
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        self._end = "" if text.endswith("\n") or not text else "\n"
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # an interrupted write
                row = json.loads(line)
                if isinstance(row, dict) and row.get("judge") == judge:
                    self._rows.append(row | {"grades": check_grades(row.get("grades"))})

    def add(self, story: Story, grades: dict[str, float] | None, answer: str, tokens: dict[str, int]) -> None:
        """Save an answer; `grades` is None if it has none."""
        row = {"judge": self._judge, "story": story.key, "grades": grades, "answer": answer, **tokens}
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._end + json.dumps(row, sort_keys=True) + "\n")
        self._end = ""
        self._rows.append(row)

    def grades(self, story: Story) -> dict[str, float] | None:
        """Return the grades of a story, None if there are none yet."""
        return next((row["grades"] for row in self._rows if row.get("story") == story.key and row["grades"]), None)

    def tokens(self, stories: list[Story], kind: str) -> int:
        """Return the number of `prompt_tokens` or `completion_tokens` of all answers about these stories."""
        keys = {story.key for story in stories}
        counts = [row.get(kind) for row in self._rows if row.get("story") in keys]
        return sum(count for count in counts if isinstance(count, int))


def open_client(judge: JudgeConfig) -> Any:
    """Return a client of the endpoint. Its key comes from the environment; a local server needs none."""
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ConfigError(f"--judge needs the openai client ({error}): pip install 'grouped-lm[judge]'") from error
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no line per request
    key = os.environ.get(judge.key_variable) or "none"
    return OpenAI(base_url=judge.base_url, api_key=key, max_retries=judge.retries, timeout=judge.timeout_s)


def grade_story(client: Any, judge: JudgeConfig, story: Story, answers: Answers) -> None:
    """Ask until an answer has grades, and save every answer; JudgeError if none has."""
    from openai import OpenAIError

    question = TASK.format(beginning=story.beginning, completion=story.completion)
    answer = ""
    for _ in range(judge.retries + 1):
        try:
            reply = client.chat.completions.create(model=judge.model, messages=[{"role": "user", "content": question}])
            answer, tokens = read_reply(reply)
        except OpenAIError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            message = hide_secrets(" ".join(f"{error}{cause}".split()))[:200]
            raise _error(judge, f"gave no answer: {message}") from error
        grades = parse_grades(answer)
        answers.add(story, grades, answer, tokens)
        if grades is not None:
            return
    last = " ".join(answer.split())[:80]
    raise _error(judge, f"answered {judge.retries + 1} times without grades, last {last!r}")


def _error(judge: JudgeConfig, reason: str) -> JudgeError:
    return JudgeError(
        f"{judge.model} at {judge.base_url} {reason}; stories and grades so far are kept in judge/, "
        f"the same command continues (judge.base_url, judge.model; the key is read from ${judge.key_variable})"
    )


def read_reply(reply: Any) -> tuple[str, dict[str, int]]:
    """Return the text and the numbers of tokens of a reply; missing parts are "" and 0."""
    choices = getattr(reply, "choices", None) or [None]
    text = getattr(getattr(choices[0], "message", None), "content", None)
    counts = {
        kind: getattr(getattr(reply, "usage", None), kind, None) for kind in ("prompt_tokens", "completion_tokens")
    }
    return text if isinstance(text, str) else "", {k: v if isinstance(v, int) else 0 for k, v in counts.items()}


def parse_grades(answer: str) -> dict[str, float] | None:
    """Return the grades of the first JSON object with all four grades in [1, 10], or None."""
    for match in re.finditer(r"\{[^{}]*\}", answer):
        with contextlib.suppress(ValueError):
            if (grades := check_grades(json.loads(match[0]))) is not None:
                return grades
    return None


def check_grades(values: Any) -> dict[str, float] | None:
    """Return the four grades of a JSON object; None if one is missing or not in [1, 10]."""
    grades = [values.get(name) for name in CRITERIA] if isinstance(values, dict) else [None]
    if all(isinstance(g, int | float) and not isinstance(g, bool) and LOWEST <= g <= HIGHEST for g in grades):
        return {name: float(values[name]) for name in CRITERIA}
    return None


def summarise_grades(stories: list[Story], answers: Answers, judge: JudgeConfig) -> dict[str, Any]:
    """Return the mean grades, the half-widths of their 95 % intervals, and the costs."""
    graded = [grades for story in stories if (grades := answers.grades(story)) is not None]
    metrics: dict[str, Any] = {"judge/model": judge.model, "judge/stories": len(graded)}
    for name in CRITERIA:
        values = [grades[name] for grades in graded]
        metrics[f"judge/{name}"] = statistics.fmean(values)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        metrics[f"judge/{name}_half_width"] = 1.96 * spread / math.sqrt(len(values))
    prompt, completion = (answers.tokens(stories, kind) for kind in ("prompt_tokens", "completion_tokens"))
    metrics |= {"judge/prompt_tokens": prompt, "judge/completion_tokens": completion}
    if judge.usd_per_million_prompt_tokens is not None and judge.usd_per_million_completion_tokens is not None:
        cost = prompt * judge.usd_per_million_prompt_tokens + completion * judge.usd_per_million_completion_tokens
        metrics["judge/cost_usd"] = cost / 1e6
    return metrics
