"""`gvc eval`: measure a trained run on a text, and compare runs."""

import itertools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from grouped_lm.config import Config
from grouped_lm.data import build_tokenizer, iter_documents, prepare_split
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.errors import ConfigError, DataError
from grouped_lm.evaluate.diagnose import diagnose
from grouped_lm.evaluate.metrics import by_frequency, by_group, by_position, sample_metrics, sum_by_story, summarise
from grouped_lm.evaluate.scoring import ContextRule, TokenScores, list_windows, score_tokens
from grouped_lm.evaluate.significance import compare_checkpoints, compare_methods
from grouped_lm.evaluate.story_tasks import score_tasks
from grouped_lm.generate import Sampling, write_texts
from grouped_lm.heads import GroupedTokens
from grouped_lm.models.lm import LanguageModel
from grouped_lm.runs.identity import config_identity
from grouped_lm.runs.load import load_config, load_model, own_tokenizer
from grouped_lm.runs.tracking import WandbRun
from grouped_lm.system.files import write_json
from grouped_lm.system.runtime import resolve_device, set_threads

SAMPLES = 16
"""Texts that are generated for the `sample/...` metrics, at temperature 1 and without truncation."""
TASK_STORIES = 1_000
"""The first so many stories of the text are used for the tasks."""


@dataclass(kw_only=True, slots=True)
class RunEvaluation:
    """One run on one text."""

    run: Path
    config: Config
    metrics: dict[str, Any]
    """Numbers by name (`val/...`: the text as one sequence, `story/...`: every story alone), and tables."""
    story_nll: np.ndarray
    """(documents,) nats of every story, each scored alone."""
    story_tokens: np.ndarray
    """(documents,) targets of every story."""
    text_sha256: str
    """sha256 of the tokens. Only runs with the same one can be compared."""


def evaluate_run(
    run: Path, config: Config, stride: int | None = None, samples: int = SAMPLES, tasks: list[str] | None = None
) -> RunEvaluation:
    """Return the evaluation of the newest checkpoint of a run.

    Args:
        run: the run folder.
        config: the run's config, possibly with another text or device.
        stride: new targets per window; None for no overlap.
        samples: texts to generate for `sample/...`, 0 for none.
        tasks: names of tasks of lm-evaluation-harness.

    Raises:
        RunFolderError, CheckpointError: there is no run, or no usable checkpoint.
        DataError: there is no text.
        ConfigError: the stride is out of range, or a task is unknown.
    """
    rules = {
        name: ContextRule(window=config.model.block_size, stride=stride, per_story=name == "story")
        for name in ("val", "story")
    }
    config = replace(config, tokenizer=own_tokenizer(run, config.tokenizer))
    device = resolve_device(config.train.device)
    set_threads(config.train.threads)
    model, step = load_model(run, config, device)
    tokenizer = build_tokenizer(config.tokenizer)
    valid = prepare_split(config.data, config.tokenizer, "valid")
    tokens, starts = np.asarray(valid.tokens()), np.asarray(valid.document_offsets())
    batch_size = config.train.eval_batch_size or config.train.micro_batch_size
    packed, alone = (
        score_tokens(model, tokens, list_windows(len(tokens), starts, rule), batch_size, device, config.train.dtype)
        for rule in rules.values()
    )
    sha256 = valid.manifest["sha256"]
    metrics: dict[str, Any] = {"run": str(run), "trainer/step": step, "val/tokens": len(packed.nll)}
    metrics["text"] = {"data": config.data.name, "valid": getattr(config.data, "valid", None), "sha256": sha256}
    words, is_text = count_words(tokenizer, tokens, starts), packed.targets != tokenizer.eot_id
    metrics |= summarise(packed, valid.text_bytes, words, is_text)
    story = summarise(alone, valid.text_bytes, words, is_text)
    metrics |= {key.replace("val/", "story/"): value for key, value in story.items()}
    metrics["reading"] = {name: rule.describe() for name, rule in rules.items()}
    metrics |= mean_tables(run, packed, model, config.data.cache_dir)
    documents = list(itertools.islice(iter_documents(config.data, "valid"), TASK_STORIES))
    metrics |= score_tasks(model, tokenizer, documents, batch_size)
    if tasks:
        harness = import_harness()
        folder = harness.write_story_tasks(documents, run / "tasks")
        metrics["harness"] = harness.run_harness(model, tokenizer, tasks, folder, batch_size)
    if samples:
        metrics |= measure_samples(model, tokenizer, samples, config.model.block_size - 1)
    metrics["diagnosis"] = diagnose(metrics, model.head)
    nll, counts = sum_by_story(alone.nll, starts)
    return RunEvaluation(
        run=run, config=config, metrics=metrics, story_nll=nll, story_tokens=counts, text_sha256=sha256
    )


def import_harness() -> ModuleType:
    """Return the module `grouped_lm.evaluate.lm_eval`; ConfigError if lm-evaluation-harness is not installed."""
    try:
        from grouped_lm.evaluate import lm_eval
    except ImportError as error:
        raise ConfigError(f"--tasks needs lm-evaluation-harness ({error}): pip install 'grouped-lm[eval]'") from error
    return lm_eval


def count_words(tokenizer: Tokenizer, tokens: np.ndarray, starts: np.ndarray) -> int:
    """Return the number of parts between white space of all documents."""
    stops = [*(starts[1:] - 1), len(tokens) - 1]
    return sum(len(tokenizer.decode(tokens[a:b].tolist()).split()) for a, b in zip(starts, stops, strict=True))


def mean_tables(run: Path, scores: TokenScores, model: LanguageModel, cache_dir: str) -> dict[str, Any]:
    """Return means by position, and if possible by training frequency and by group.

    The run's training text is prepared in `cache_dir`.
    """
    tables: dict[str, Any] = {"by_position": by_position(scores)}
    trained = load_config(run)
    try:
        data = replace(trained.data, cache_dir=cache_dir)
        training = prepare_split(data, own_tokenizer(run, trained.tokenizer), "train")
    except DataError:
        pass  # its source does not exist any more
    else:
        tables["by_frequency"] = by_frequency(scores, training.counts())
    if isinstance(model.head, GroupedTokens):
        tables["by_group"] = by_group(scores, model.head.token_to_group.cpu().numpy())
    return tables


def measure_samples(model: LanguageModel, tokenizer: Tokenizer, samples: int, max_new_tokens: int) -> dict[str, float]:
    """Return `sample_metrics` of texts that the model generates without a prompt."""
    sampling, generator = Sampling(temperature=1.0), torch.Generator(next(model.parameters()).device).manual_seed(0)
    texts = write_texts(
        model, tokenizer, "", num_samples=samples, max_new_tokens=max_new_tokens, sampling=sampling, generator=generator
    )
    return sample_metrics([text.tokens for text in texts], tokenizer.eot_id)


def save_evaluation(evaluation: RunEvaluation, comparisons: dict[str, Any], name: str = "eval") -> None:
    """Write `NAME.json` into the run folder, and the numbers into W&B's summary as `NAME/...`.

    The name `eval` is for the run's own validation text; `gvc ls` and reports read eval.json. `comparisons` is the
    result of `compare_runs`, or {}.
    """
    write_json(evaluation.run / f"{name}.json", evaluation.metrics | comparisons)
    trained = load_config(evaluation.run)
    tracked = replace(trained, tracking=evaluation.config.tracking)
    numbers = {key: value for key, value in evaluation.metrics.items() if isinstance(value, int | float)}
    WandbRun(tracked, evaluation.run).finish({f"{name}/{key.removeprefix('val/')}": v for key, v in numbers.items()})


def compare_runs(evaluations: list[RunEvaluation]) -> dict[str, Any]:
    """Return the difference of every other run from the first, and of every other method from the first run's method.

    Runs whose configs differ only in the seed belong to one method. ConfigError: the runs read different tokens.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if other.text_sha256 != first.text_sha256:
            raise ConfigError(f"{first.run} and {other.run} read other tokens: give both the same text, --data FILE")
    checkpoints = [
        {"first": str(first.run), "second": str(other.run)}
        | asdict(compare_checkpoints(first.story_nll, other.story_nll, first.story_tokens))
        for other in evaluations[1:]
    ]
    (base, losses), *others = losses_by_method(evaluations).items()
    methods = [{"first": base, "second": name} | asdict(compare_methods(losses, other)) for name, other in others]
    return {"checkpoints": checkpoints, "methods": methods}


def losses_by_method(evaluations: list[RunEvaluation]) -> dict[str, list[float]]:
    """Return the losses of every method, by a name that lists the settings in which the methods differ."""
    identities = [
        {k: v for k, v in config_identity(e.config).items() if k != "seed" and not k.startswith("data.")}
        for e in evaluations
    ]
    keys = sorted({key for identity in identities for key in identity})
    different = [key for key in keys if len({str(identity.get(key)) for identity in identities}) > 1]
    losses: dict[str, list[float]] = {}
    for evaluation, identity in zip(evaluations, identities, strict=True):
        settings = [
            f"{key.removesuffix('.name')}={identity[key]}" for key in different if identity.get(key) is not None
        ]
        name = " ".join(settings) or f"head={evaluation.config.head.name}"
        losses.setdefault(name, []).append(evaluation.metrics["val/loss"])
    return losses
