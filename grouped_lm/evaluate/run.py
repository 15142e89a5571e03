"""`gvc eval`: measure a trained run on a text, and compare runs."""

import itertools
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from grouped_lm.config import Config
from grouped_lm.data import build_tokenizer, iter_documents, prepare_split
from grouped_lm.data.token_file import TokenFile
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.errors import CheckpointError, ConfigError, DataError
from grouped_lm.evaluate.diagnose import diagnose
from grouped_lm.evaluate.metrics import by_frequency, by_group, by_position, sample_metrics, sum_by_story, summarise
from grouped_lm.evaluate.scoring import ContextRule, TokenScores, list_windows, measure_body_share, score_tokens
from grouped_lm.evaluate.significance import compare_checkpoints, compare_methods
from grouped_lm.evaluate.story_tasks import Questions, make_questions, score_tasks
from grouped_lm.generate import Sampling, write_texts
from grouped_lm.heads import GroupedTokens
from grouped_lm.models.lm import LanguageModel
from grouped_lm.prior.config import KneserNeyConfig
from grouped_lm.runs.checkpoint import list_checkpoints
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.identity import config_identity
from grouped_lm.runs.load import load_config, load_model, own_tokenizer
from grouped_lm.runs.tracking import start_tracking
from grouped_lm.system.console import EvalDisplay
from grouped_lm.system.files import read_json_dict, write_json
from grouped_lm.system.phases import phase
from grouped_lm.system.runtime import resolve_device, set_threads

log = logging.getLogger(__name__)

SAMPLES = 16
"""Texts that are generated for the `sample/...` metrics, at temperature 1 and without truncation."""
TOKENS = 4_096
"""A batch has about so many, unless the config asks for more: the groups are then computed for many states at once."""
STORIES = "stories-{}.json"
"""Where an evaluation keeps the loss of every story."""
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
    text_changed: bool
    """Whether the text has other contents than the run's validation text had in training."""


def evaluate_run(
    run: Path,
    config: Config,
    stride: int | None = None,
    samples: int = SAMPLES,
    tasks: list[str] | None = None,
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
    with EvalDisplay() as display:
        return _evaluate_run(run, config, stride, samples, tasks, display)


def check_runs(runs: list[Path], configs: list[Config], stride: int | None = None) -> None:
    """Check what can be known of several runs before the first of them is evaluated.

    Raises:
        CheckpointError: a run has no checkpoint.
        DataError: there is no text.
        ConfigError: the stride is out of range, or the runs read different tokens.
    """
    hashes = {}
    for run, config in zip(runs, configs, strict=True):
        _rules(config, stride)
        if not isinstance(config.head, KneserNeyConfig) and not list_checkpoints(RunFolder(run).checkpoints):
            raise CheckpointError(f"{run} has no checkpoint yet: train it first")
        if len(runs) > 1:
            hashes[run] = _validation_text(run, config)[2].manifest["sha256"]
    _refuse_other_texts(hashes)


def _rules(config: Config, stride: int | None) -> list[ContextRule]:
    return [ContextRule(window=config.model.block_size, stride=stride, per_story=alone) for alone in (False, True)]


def _validation_text(run: Path, config: Config) -> tuple[Config, Tokenizer, TokenFile]:
    """Return the config with the run's own tokenizer, this tokenizer, and the tokens to evaluate on."""
    config = replace(config, tokenizer=own_tokenizer(run, config.tokenizer))
    tokenizer = build_tokenizer(config.tokenizer)
    text = prepare_split(config.data, config.tokenizer, "valid")
    return config, tokenizer, text.first(config.eval.max_tokens, tokenizer)


def _refuse_other_texts(hashes: dict[Path, str]) -> None:
    """Raise a `ConfigError` if one of the runs reads other tokens than the first; `hashes` are those of the tokens."""
    runs = list(hashes)
    for run in runs[1:]:
        if hashes[run] != hashes[runs[0]]:
            raise ConfigError(f"{runs[0]} and {run} read other tokens: give both the same text, --data FILE")


def _evaluate_run(
    run: Path, config: Config, stride: int | None, samples: int, tasks: list[str] | None, display: EvalDisplay
) -> RunEvaluation:
    display.phase(f"{run}: reading")
    rules = _rules(config, stride)
    set_threads(config.train.threads)
    config, tokenizer, valid = _validation_text(run, config)
    model, step = load_model(run, config, resolve_device(config.train.device))
    starts = np.asarray(valid.document_offsets())
    documents = list(itertools.islice(iter_documents(config.data, "valid"), min(TASK_STORIES, len(starts))))
    text = Text(np.asarray(valid.tokens()), starts, make_questions(tokenizer, documents))
    packed, alone, answers = score_text(run, model, config, text, rules, display)
    metrics: dict[str, Any] = {"run": str(run), "trainer/step": step, "val/tokens": len(packed.nll)}
    sha256 = valid.manifest["sha256"]
    metrics["text"] = {"data": config.data.name, "valid": getattr(config.data, "valid", None), "sha256": sha256}
    words, is_text = count_words(tokenizer, text.tokens, starts), packed.targets != tokenizer.eot_id
    metrics |= summarise(packed, valid.text_bytes, words, is_text)
    story = summarise(alone, valid.text_bytes, words, is_text)
    metrics |= {key.replace("val/", "story/"): value for key, value in story.items()}
    part = f"; {valid.part} of the text" if valid.part else ""
    metrics["reading"] = {name: rule.describe() + part for name, rule in zip(("val", "story"), rules, strict=True)}
    metrics |= mean_tables(run, packed, model, config.data.cache_dir) | answers
    if tasks:
        harness, batch_size = import_harness(), batch_size_of(config)
        folder = harness.write_story_tasks(documents, run / "tasks")
        metrics["harness"] = harness.run_harness(model, tokenizer, tasks, folder, batch_size)
    if samples:
        display.phase(f"{run}: writing {samples} texts")
        metrics |= measure_samples(model, tokenizer, samples, config.model.block_size - 1)
    metrics["diagnosis"] = diagnose(metrics, model.head)
    nll, counts = sum_by_story(alone.nll, starts)
    return RunEvaluation(
        run=run,
        config=config,
        metrics=metrics,
        story_nll=nll,
        story_tokens=counts,
        text_sha256=sha256,
        text_changed=bool(RunFolder(run).changed_text("valid", valid.manifest["source"])),
    )


@dataclass(frozen=True, slots=True)
class Text:
    """A text to score: its (N + 1,) ids, the index of every document's first one, and questions about it."""

    tokens: np.ndarray
    starts: np.ndarray
    questions: Questions


def score_text(
    run: Path, model: LanguageModel, config: Config, text: Text, rules: list[ContextRule], display: EvalDisplay
) -> tuple[TokenScores, TokenScores, dict[str, Any]]:
    """Return the scores of the tokens under both rules, and the answers to the questions."""
    device, dtype, batch_size = next(model.parameters()).device, config.train.dtype, batch_size_of(config)
    n_targets = len(text.tokens) - 1
    share = measure_body_share(model, text.tokens, device, dtype)  # questions need the head for few of their tokens
    units = 2 * n_targets + share * text.questions.n_tokens(config.model.block_size)
    display.phase(f"{run}: {n_targets:,} tokens, twice", total=units)
    packed, alone = (
        score_tokens(
            model, text.tokens, list_windows(n_targets + 1, text.starts, rule), batch_size, device, dtype, display.done
        )
        for rule in rules
    )
    display.phase(f"{run}: answering questions about stories")
    return packed, alone, score_tasks(model, text.questions, batch_size, lambda tokens: display.done(share * tokens))


def batch_size_of(config: Config) -> int:
    """Return the windows per batch."""
    return config.train.eval_batch_size or max(config.train.micro_batch_size, TOKENS // config.model.block_size)


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
    trained, imported = load_config(run), (read_json_dict(run / "result.json") or {}).get("imported_from")
    try:
        if imported:
            raise DataError(f"{run} was imported: its training text is not known")
        data = replace(trained.data, cache_dir=cache_dir)
        training = prepare_split(data, own_tokenizer(run, trained.tokenizer), "train")
        if changed := RunFolder(run).changed_text("train", training.manifest["source"]):
            raise DataError(f"{run} was trained with other text: {changed}")
    except DataError as error:
        log.info("no table by training frequency: %s", error)
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
    """Write `NAME.json` into the run folder, and the numbers into the summary of W&B or TensorBoard as `NAME/...`.

    The name `eval` is for the run's own validation text; `gvc ls` and reports read eval.json. `comparisons` is the
    result of `compare_runs`, or {}.
    """
    write_json(evaluation.run / f"{name}.json", evaluation.metrics | comparisons)
    stories = {"nll": evaluation.story_nll.tolist(), "tokens": evaluation.story_tokens.tolist()}
    about = {"sha256": evaluation.text_sha256, "trainer/step": evaluation.metrics["trainer/step"]}
    write_json(evaluation.run / STORIES.format(name), about | stories)
    trained = load_config(evaluation.run)
    tracked = replace(trained, tracking=evaluation.config.tracking)
    numbers = {key: value for key, value in evaluation.metrics.items() if isinstance(value, int | float)}
    summary = {f"{name}/{key.removeprefix('val/')}": value for key, value in numbers.items()}
    with phase("saving the figures"):
        start_tracking(tracked, evaluation.run).finish(summary, name=name)


@dataclass(frozen=True, slots=True)
class StoryLosses:
    """What `save_evaluation` keeps for later comparisons."""

    nll: np.ndarray
    """(documents,) nats of every story."""
    tokens: np.ndarray
    """(documents,) targets of every story."""
    sha256: str
    """Of the tokens."""
    step: int
    """Step of the checkpoint."""


def read_story_losses(run: Path, name: str = "eval") -> StoryLosses | None:
    """Return the losses that `gvc eval` has saved in a run folder, or None if there are none that can be read."""
    saved = read_json_dict(run / STORIES.format(name)) or {}
    try:
        columns = np.array(saved["nll"], float), np.array(saved["tokens"], int)
        return StoryLosses(*columns, str(saved["sha256"]), int(saved["trainer/step"]))
    except (KeyError, ValueError, TypeError):
        return None


def compare_runs(evaluations: list[RunEvaluation]) -> dict[str, Any]:
    """Return the difference of every other run from the first, and of every other method from the first run's method.

    Runs whose configs differ only in the seed belong to one method; of two runs of one seed the first counts.
    ConfigError: the runs read different tokens.
    """
    first = evaluations[0]
    _refuse_other_texts({evaluation.run: evaluation.text_sha256 for evaluation in evaluations})
    checkpoints = [
        {"first": str(first.run), "second": str(other.run)}
        | asdict(compare_checkpoints(first.story_nll, other.story_nll, first.story_tokens))
        for other in evaluations[1:]
    ]
    (base, losses), *others = losses_by_method(evaluations).items()
    methods = [{"first": base, "second": name} | asdict(compare_methods(losses, other)) for name, other in others]
    return {"checkpoints": checkpoints, "methods": methods}


def losses_by_method(evaluations: list[RunEvaluation]) -> dict[str, list[float]]:
    """Return the losses of every method, one for each seed, by a name with the settings in which the methods differ."""
    identities = [_method_of(evaluation) for evaluation in evaluations]
    keys = sorted({key for identity in identities for key in identity})
    different = [key for key in keys if len({str(identity.get(key)) for identity in identities}) > 1]
    losses: dict[str, dict[int, float]] = {}
    for evaluation, identity in zip(evaluations, identities, strict=True):
        settings = [
            f"{key.removesuffix('.name')}={identity[key]}" for key in different if identity.get(key) is not None
        ]
        name = " ".join(settings) or f"head={evaluation.config.head.name}"
        losses.setdefault(name, {}).setdefault(evaluation.config.seed, evaluation.metrics["val/loss"])
    return {name: list(own.values()) for name, own in losses.items()}


def _method_of(evaluation: RunEvaluation) -> dict[str, Any]:
    """Return the settings of a run that decide what it has learnt, but for the seed and the validation text."""
    left_out = ("seed", "data.valid", "data.max_valid_tokens")
    own = {key: value for key, value in config_identity(evaluation.config).items() if not key.startswith("data.")}
    trained = config_identity(load_config(evaluation.run))  # the text of the evaluation can be another one
    own |= {key: value for key, value in trained.items() if key.startswith("data.")}
    return {key: value for key, value in own.items() if key not in left_out}
