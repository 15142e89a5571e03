"""`gvc eval`."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, complete_run, plain_value, say, starting

if TYPE_CHECKING:
    from grouped_lm.evaluate.run import RunEvaluation


def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Runs, and config values.", autocompletion=complete_run),
    ],
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Another text than the validation set.")] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="New targets per window; default: no overlap.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Texts to write for measures of diversity.")] = 16,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="TASK,...", help="Tasks of lm-eval, or story_perplexity, story_choice, story_cloze_word."),
    ] = None,
    judge: Annotated[bool, typer.Option("--judge", help="Let a language model grade stories.")] = False,
    as_json: Json = False,
) -> None:
    """Evaluate the last checkpoint of a run on its whole validation set, or on its first eval.max_tokens=N tokens.

    Two runs or more are compared with the first: checkpoints by paired tests over stories, heads by an equivalence test
    over seeds. The figures are written to eval.json in each run folder, those of another text FILE, or of a part of a
    text, to eval-FILE.json. --judge needs judge.base_url=URL judge.model=NAME.

    Example: gvc eval runs/dense runs/grouped --samples 0
    """
    with starting():
        from grouped_lm.config import EvalConfig
        from grouped_lm.evaluate.llm_judge import grade_run
        from grouped_lm.evaluate.run import check_runs, compare_runs, evaluate_run, import_harness, save_evaluation
        from grouped_lm.evaluate.tables import print_comparison, print_run
        from grouped_lm.runs.load import load_config

        from .compose.compose import quoted
        from .compose.run import override_saved

    runs, overrides = split_words(words)
    if data is not None:
        overrides = ["data=text", *(f"data.{split}={quoted(str(data))}" for split in ("train", "valid")), *overrides]
    configs = [override_saved(replace(load_config(run), eval=EvalConfig()), overrides) for run in runs]
    check_tokenizers([config.tokenizer.label for config in configs])
    check_runs(runs, configs, stride)
    names = tasks.split(",") if tasks else None
    if names:
        import_harness().check_tasks(names)
    grades = [grade_run(run, config, say) if judge else {} for run, config in zip(runs, configs, strict=True)]
    evaluations = [evaluate_run(run, config, stride, samples, names) for run, config in zip(runs, configs, strict=True)]
    comparisons = compare_runs(evaluations) if len(evaluations) > 1 else {}
    for evaluation, graded in zip(evaluations, grades, strict=True):
        evaluation.metrics |= graded
    if as_json:
        metrics = [evaluation.metrics for evaluation in evaluations]
        print(json.dumps({"runs": metrics, **comparisons} if comparisons else metrics[0], indent=2))
    else:
        for evaluation in evaluations:
            print_run(evaluation.metrics)
        if comparisons:
            print_comparison(comparisons)
    for evaluation in evaluations:  # last: the metrics are printed even if a run folder cannot be written
        save_evaluation(evaluation, comparisons, file_name(evaluation, data, stride))


def check_tokenizers(labels: list[str]) -> None:
    """Raise `ConfigError` for runs of different tokenizers, before any of them is evaluated."""
    from grouped_lm.errors import ConfigError

    different = list(dict.fromkeys(labels))
    if len(different) > 1:
        raise ConfigError(
            f"these runs have different tokenizers ({', '.join(different)}), so their losses per token do not compare: "
            "evaluate each alone, and compare bits per byte"
        )


def file_name(evaluation: "RunEvaluation", data: Path | None, stride: int | None) -> str:
    """Return the name of the file of an evaluation: `eval` for a run on its own validation text as it was trained.

    Another text, prior, model, stride or dtype has a name of its own, such as `eval-other`. Two texts of one file name
    differ in the start of their SHA-256.
    """
    from grouped_lm.runs.load import load_config
    from grouped_lm.system.files import read_json_dict

    config, saved = evaluation.config, load_config(evaluation.run)
    same_data = replace(config.data, cache_dir=saved.data.cache_dir) == saved.data
    same_text = data is None and same_data and config.eval.max_tokens is None and not evaluation.text_changed
    same_dtype = config.train.dtype == saved.train.dtype
    same_model = same_dtype and (config.prior, config.model) == (saved.prior, saved.model)
    overlaps = stride is not None and stride < config.model.block_size
    if same_text and same_model and not overlaps:
        return "eval"
    named = str(data) if data else getattr(config.data, "valid", None) or config.data.name
    stem = "-".join(Path(str(part)).stem for part in ([named] if isinstance(named, str) else named))
    stem = re.sub(r"[][{}*?]", "_", stem)  # a pattern has them
    stem += "" if config.prior == saved.prior else f"-prior-{config.prior.name}"
    stem += "" if config.model == saved.model else "-other-model"
    stem += "" if same_dtype else f"-{config.train.dtype}"
    stem += f"-stride-{stride}" if overlaps else ""
    before = read_json_dict(evaluation.run / f"eval-{stem}.json")
    if before and (before.get("text") or {}).get("sha256") != evaluation.text_sha256:
        stem += f"-{evaluation.text_sha256[:8]}"
    return f"eval-{stem}"


def split_words(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return run folders and overrides. A word with = is an override, unless it is a folder."""
    from grouped_lm.errors import ConfigError

    runs = [Path(word) for word in words if "=" not in word or Path(word).is_dir()]
    if not runs:
        raise ConfigError(f"no run folder among {' '.join(words)}: name one, as `gvc train` printed it")
    return runs, [plain_value(word) for word in words if "=" in word and not Path(word).is_dir()]
