"""Evaluate a run with lm-evaluation-harness (extra `eval`), on its tasks and on local tasks from a text's stories.

`gvc eval RUN --tasks story_perplexity,story_choice,story_cloze_word` needs no network.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.errors import ConfigError
from grouped_lm.evaluate.story_tasks import log_likelihoods, make_choices, make_clozes
from grouped_lm.generate import Sampling, write_texts
from grouped_lm.models.lm import LanguageModel
from grouped_lm.system.files import write_json

TASKS: dict[str, dict[str, Any]] = yaml.safe_load(
    files("grouped_lm.evaluate").joinpath("lm_eval_tasks.yaml").read_text(encoding="utf-8")
)
"""The harness's description of each local task."""


class HarnessModel(LM):
    """A language model in evaluation mode for the harness; every text starts after an end-of-text."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int = 8) -> None:
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the greedy one."""
        return log_likelihoods(self.model, [self._pair(*request.args) for request in requests], self.batch_size)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-probability of whole texts, in windows without overlap."""
        pairs = [([self.tokenizer.eot_id], self.tokenizer.encode(request.args[0])) for request in requests]
        return [total for total, _ in log_likelihoods(self.model, pairs, self.batch_size)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return greedy continuations up to the task's stop texts; sampled ones if the task wants them."""
        generator = torch.Generator(next(self.model.parameters()).device).manual_seed(0)
        texts = []
        for request in requests:
            context, options = request.args
            stops = options.get("until") or []
            temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
            (text,) = write_texts(
                self.model,
                self.tokenizer,
                context,
                max_new_tokens=int(options.get("max_gen_toks", 256)),
                sampling=Sampling(temperature=temperature),
                stops=[stops] if isinstance(stops, str) else stops,
                generator=generator,
            )
            texts.append(text.text)
        return texts

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of context and continuation, encoded together, as the harness does for its own models."""
        rest = context[len(context.rstrip()) :]  # spaces belong to the word that follows
        begin = self.tokenizer.encode(context[: len(context) - len(rest)])
        whole = self.tokenizer.encode(context + continuation)
        return [self.tokenizer.eot_id, *whole[: len(begin)]], whole[len(begin) :]


def write_story_tasks(stories: Iterable[str], folder: Path) -> Path:
    """Write the documents and descriptions of the local tasks into `folder`, and return it."""
    stories = [story for story in stories if story]
    documents: dict[str, list[dict[str, Any]]] = {
        "story_perplexity": [{"text": story} for story in stories],
        "story_choice": [asdict(choice) for choice in make_choices(stories)],
        "story_cloze_word": [asdict(cloze) for cloze in make_clozes(stories)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in documents.items():
        if not rows:
            continue  # the harness fails on a task without documents
        data = (folder / f"{name}.jsonl").resolve()
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        write_json(folder / f"{name}.yaml", {"task": name, **source, **TASKS[name]})  # JSON is YAML
    return folder


def check_tasks(tasks: list[str], known: Iterable[str] | None = None) -> None:
    """Raise ConfigError if a task is not in `known`: None is the harness's own tasks and all local ones."""
    known = {*TASKS, *TaskManager().all_tasks} if known is None else set(known)
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise ConfigError(
            f"unknown task {', '.join(unknown)}: there are {', '.join(TASKS)}, where stories of this text fit them, "
            "and those of `lm_eval ls tasks`"
        )


def run_harness(
    model: LanguageModel, tokenizer: Tokenizer, tasks: list[str], folder: Path, batch_size: int
) -> dict[str, Any]:
    """Return the harness's results by task; `folder` has the files of `write_story_tasks`."""
    manager = TaskManager(include_path=str(folder))
    check_tasks(tasks, manager.all_tasks)
    evaluation = simple_evaluate(
        HarnessModel(model, tokenizer, batch_size), tasks=tasks, task_manager=manager, bootstrap_iters=0
    )
    assert evaluation is not None  # only other ranks of a distributed evaluation get None
    return {task: dict(results) for task, results in evaluation["results"].items()}
