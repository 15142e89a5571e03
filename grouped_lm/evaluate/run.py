"""`gvc eval`: everything that is measured of a trained run on a text, and how runs differ."""

import dataclasses
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from grouped_lm.config import Config, config_to_dict
from grouped_lm.data import TokenFile, build_tokenizer, iter_documents, prepare_split
from grouped_lm.errors import ConfigError, DataError
from grouped_lm.evaluate.diagnose import diagnose
from grouped_lm.evaluate.metrics import by_frequency, by_group, by_position, sum_by_story, summarise, text_measures
from grouped_lm.evaluate.scoring import Reading, Scores, list_windows, score
from grouped_lm.evaluate.significance import compare_checkpoints, compare_methods
from grouped_lm.evaluate.story_tasks import score_tasks
from grouped_lm.generate import Sampling, write_texts
from grouped_lm.models.lm import LanguageModel
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.identity import config_identity
from grouped_lm.runs.tracking import WandbRun
from grouped_lm.system.files import write_json
from grouped_lm.system.runtime import resolve_device, set_threads

SAMPLES = 16
"""Texts that are written for the measures without a reference, at temperature 1 and without a cut."""

TASK_STORIES = 1_000
"""Stories of the text, the first ones, that tasks are made from."""


@dataclass(kw_only=True, slots=True)
class Assessment:
    """One run on one text."""

    run: Path
    config: Config
    figures: dict[str, Any]
    """Scalars by the keys of the record (`val/...` packed, `story/...` every story alone), and tables."""
    story_nll: np.ndarray
    """(documents,) nats of every story, read alone."""
    story_tokens: np.ndarray
    text: str
    """sha256 of the tokens: runs are compared on the same ones only."""


def assess(
    run: Path, config: Config, stride: int | None = None, samples: int = SAMPLES, tasks: list[str] | None = None
) -> Assessment:
    """Measure the newest checkpoint of a run.

    Args:
        run: the run folder.
        config: the run's, possibly with another text or device.
        stride: new targets per window, see `Reading`.
        samples: texts to write for `sample/...`, 0 for none.
        tasks: of lm-evaluation-harness, see `grouped_lm.evaluate.lm_eval`.

    Raises:
        RunFolderError, CheckpointError, DataError, ConfigError: no run, no checkpoint, no text, a stride out of range.
    """
    readings = [Reading(window=config.model.block_size, stride=stride, per_story=story) for story in (False, True)]
    config = replace(config, tokenizer=RunFolder(run).own_tokenizer(config.tokenizer))
    device = resolve_device(config.train.device)
    set_threads(config.train.threads)
    model, step = RunFolder(run).load_model(config, device)
    valid = prepare_split(config.data, config.tokenizer, "valid")
    tokens, starts = np.asarray(valid.tokens()), np.asarray(valid.document_offsets())
    batch_size = config.train.eval_batch_size or config.train.micro_batch_size
    packed, alone = (
        score(model, tokens, list_windows(len(tokens), starts, reading), batch_size, device, config.train.dtype)
        for reading in readings
    )
    figures: dict[str, Any] = {"run": str(run), "trainer/step": step, "val/tokens": len(packed.nll)}
    figures["text"] = {"data": config.data.name, "valid": config.data.valid, "sha256": valid.manifest["sha256"]}
    words, is_text = count_words(config, tokens, starts), packed.targets != build_tokenizer(config.tokenizer).eot_id
    figures |= summarise(packed, valid.text_bytes, words, is_text)
    story = summarise(alone, valid.text_bytes, words, is_text)
    figures |= {key.replace("val/", "story/"): value for key, value in story.items()}
    figures["reading"] = {"val": readings[0].describe(), "story": readings[1].describe()}
    figures |= tables(run, packed, model, config.data.cache_dir)
    documents = list(itertools.islice(iter_documents(config.data, "valid"), TASK_STORIES))
    figures |= score_tasks(model, build_tokenizer(config.tokenizer), documents, batch_size)
    if tasks:
        figures["harness"] = ask_harness(model, config, tasks, documents, run / "tasks", batch_size)
    if samples:
        figures |= write_samples(model, config, samples, device)
    head: Any = model.head
    figures["diagnosis"] = diagnose(
        figures, head.vocab_size, getattr(head, "n_group", None), getattr(head, "group_size", None)
    )
    nll, counts = sum_by_story(alone.nll, starts)
    return Assessment(
        run=run, config=config, figures=figures, story_nll=nll, story_tokens=counts, text=valid.manifest["sha256"]
    )


def import_harness() -> ModuleType:
    """Return `grouped_lm.evaluate.lm_eval`.

    Raises:
        ConfigError: lm-evaluation-harness is not installed.
    """
    try:
        from grouped_lm.evaluate import lm_eval as harness
    except ImportError as error:
        raise ConfigError(f"--tasks needs lm-evaluation-harness ({error}): pip install 'grouped-lm[eval]'") from error
    return harness


def ask_harness(
    model: LanguageModel, config: Config, tasks: list[str], stories: list[str], folder: Path, batch_size: int
) -> dict[str, Any]:
    """Return what lm-evaluation-harness finds, with the stories' own tasks written into `folder`.

    Raises:
        ConfigError: it is not installed, or a task is not known.
    """
    harness = import_harness()
    harness.write_story_tasks(stories, folder)
    return harness.run_harness(model, build_tokenizer(config.tokenizer), tasks, folder, batch_size)


def count_words(config: Config, tokens: np.ndarray, starts: np.ndarray) -> int:
    """Return the parts between white space of all documents."""
    tokenizer = build_tokenizer(config.tokenizer)
    stops = [*(starts[1:] - 1), len(tokens) - 1]
    return sum(len(tokenizer.decode(tokens[a:b].tolist()).split()) for a, b in zip(starts, stops, strict=True))


def tables(run: Path, scores: Scores, model: LanguageModel, cache_dir: str) -> dict[str, Any]:
    """Return means by position, and as far as they exist by training frequency and by group."""
    found: dict[str, Any] = {"by_position": by_position(scores)}
    training = training_text(run, cache_dir)
    if training is not None:
        found["by_frequency"] = by_frequency(scores, training.counts())
    groups = getattr(model.head, "token_to_group", None)
    if isinstance(groups, torch.Tensor):
        found["by_group"] = by_group(scores, groups.cpu().numpy())
    return found


def training_text(run: Path, cache_dir: str) -> TokenFile | None:
    """Return the text that the run was trained on, prepared in our own cache, None where it is gone."""
    config = RunFolder(run).read_config()
    try:
        data = replace(config.data, cache_dir=cache_dir)
        return prepare_split(data, RunFolder(run).own_tokenizer(config.tokenizer), "train")
    except DataError:
        return None


def write_samples(model: LanguageModel, config: Config, samples: int, device: torch.device) -> dict[str, float]:
    """Return `text_measures` of texts that the model writes from nothing."""
    tokenizer, generator = build_tokenizer(config.tokenizer), torch.Generator(device).manual_seed(0)
    texts = write_texts(
        model,
        tokenizer,
        "",
        num_samples=samples,
        max_new_tokens=config.model.block_size - 1,
        sampling=Sampling(temperature=1.0),
        generator=generator,
    )
    return text_measures([text.tokens for text in texts], tokenizer.eot_id)


def record(assessment: Assessment, comparisons: dict[str, Any], name: str = "eval") -> None:
    """Write `NAME.json` into the run folder and the scalars into W&B's summary, as `NAME/...`.

    Args:
        assessment: of a run.
        comparisons: with others, see `compare`.
        name: `eval` for the run's own validation text, which `gvc ls` and reports read.

    Raises:
        DiskError: the folder cannot be written.
    """
    write_json(assessment.run / f"{name}.json", assessment.figures | comparisons)
    trained = RunFolder(assessment.run).read_config()
    kept = dataclasses.replace(trained, tracking=assessment.config.tracking)
    scalars = {key: value for key, value in assessment.figures.items() if isinstance(value, int | float)}
    WandbRun(kept, assessment.run).finish({f"{name}/{key.removeprefix('val/')}": v for key, v in scalars.items()})


def compare(assessments: list[Assessment]) -> dict[str, Any]:
    """Return how every further run differs from the first, and every further method from the first one's.

    Runs are of one method where their configs differ in nothing but the seed.

    Raises:
        ConfigError: the runs read other tokens.
    """
    first = assessments[0]
    for other in assessments[1:]:
        if other.text != first.text:
            raise ConfigError(f"{first.run} and {other.run} read other tokens: give both the same text, --data FILE")
    checkpoints = [
        {"first": str(first.run), "second": str(other.run)}
        | dataclasses.asdict(compare_checkpoints(first.story_nll, other.story_nll, first.story_tokens))
        for other in assessments[1:]
    ]
    (base, losses), *others = by_method(assessments).items()
    methods = [
        {"first": base, "second": name} | dataclasses.asdict(compare_methods(losses, other)) for name, other in others
    ]
    return {"checkpoints": checkpoints, "methods": methods}


def by_method(assessments: list[Assessment]) -> dict[str, list[float]]:
    """Return the losses of every method, under what tells it from the others."""
    identities = [
        {
            k: v
            for k, v in config_identity(config_to_dict(a.config)).items()
            if k != "seed" and not k.startswith("data.")
        }
        for a in assessments
    ]
    keys = sorted({key for identity in identities for key in identity})
    differ = [key for key in keys if len({str(identity.get(key)) for identity in identities}) > 1]
    found: dict[str, list[float]] = {}
    for assessment, identity in zip(assessments, identities, strict=True):
        words = [f"{key.removesuffix('.name')}={identity[key]}" for key in differ if identity.get(key) is not None]
        name = " ".join(words) or f"head={assessment.config.head.name}"
        found.setdefault(name, []).append(assessment.figures["val/loss"])
    return found
