"""Train a run of `head=kneser_ney`: count n-grams, and write the same files as a run of a network."""

import time
from typing import Any

import torch

from grouped_lm.config import Config
from grouped_lm.data import build_tokenizer, prepare_data
from grouped_lm.data.tokenizers.bpe import BPETokenizer
from grouped_lm.evaluate.counts import count_text, counts_tokens, validate_counts
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.identity import config_hash
from grouped_lm.runs.inputs import describe_inputs
from grouped_lm.runs.tracking import MetricsLog, start_tracking
from grouped_lm.system.console import TrainDisplay
from grouped_lm.system.files import write_json
from grouped_lm.system.runtime import describe_environment


def count_steps(config: Config, folder: RunFolder) -> dict[str, Any] | None:
    """Count the tokens that training would see, validate where training would, and return the result.

    None means that the run has a network, and nothing is done.

    Steps, batches and `train.eval_every_steps` mean the same as for a network, so that both can be compared along
    training. A run that was stopped begins again.
    """
    if not counts_tokens(config):
        return None
    train = config.train
    reading = folder.with_tokenizer(config)
    corpus = prepare_data(reading.data, reading.tokenizer)
    environment = describe_environment(torch.device("cpu"))
    folder.write_start(config, environment, describe_inputs(reading, corpus))
    tokenizer = build_tokenizer(reading.tokenizer, reading.data)
    if isinstance(tokenizer, BPETokenizer):
        tokenizer.save(folder.tokenizer)
    metrics_log, tracker = MetricsLog(folder.metrics), start_tracking(config, folder.path)
    metrics_log.cut(0)
    tracker.rewind([])
    started, row = time.monotonic(), {}
    every = train.eval_every_steps or train.max_steps
    with TrainDisplay(f"{config.head.order}-grams", train.max_steps, 0, False) as display:
        for step in [*range(every, train.max_steps, every), train.max_steps]:
            begun = time.monotonic()
            model, n_tokens = count_text(config, corpus.train, step)
            seconds = time.monotonic() - begun
            row = {"trainer/step": step, "trainer/tokens": n_tokens, "throughput/tokens_per_sec": n_tokens / seconds}
            row |= validate_counts(model, corpus.valid)
            for log in (metrics_log.append, tracker.log):
                log(row)
            display.step(step)
            display.row(step, row)
    n_grams = sum(len(level.words) for level in model.levels)
    result = {
        "state": COMPLETE,
        "config_hash": config_hash(config),
        "commit": environment["commit"],
        "seed": config.seed,
        "model": config.model.name,
        "head": config.head.name,
        "data": config.data.name,
        "tokenizer": config.tokenizer.label,
        "params/total": n_grams,
        "params/head": n_grams,
        **row,
        "time/total_s": time.monotonic() - started,
    }
    write_json(folder.result, result)
    tracker.finish(result)
    return result
