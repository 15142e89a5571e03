"""The training loop, from data to result."""

from pathlib import Path
from typing import Any

from grouped_lm.config import Config
from grouped_lm.distributed.process_group import ProcessGroup
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.train.counts import count_steps
from grouped_lm.train.session import TrainingRun
from grouped_lm.train.setup import build_model, lock_folder, prepare_corpus, record_failure, set_up_process


def train(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train one model in `run_dir`, or continue it, and return its result. A complete run is left as it is.

    Raises:
        GvcError: the run failed.
        KeyboardInterrupt, SystemExit: the user stopped the run. Its state was saved before.
    """
    with lock_folder(config, run_dir) as (folder, process_group):
        if (result := process_group.on_first(folder.read_result)) and result["state"] == COMPLETE:
            return result
        with record_failure(config, folder, process_group):
            return count_steps(config, folder) or train_steps(config, folder, process_group)


def train_steps(config: Config, folder: RunFolder, process_group: ProcessGroup) -> dict[str, Any]:
    """Train to the end. This is not part of `train` because a DDP model must be deleted before its process group."""
    config, device, predicted_bytes = set_up_process(config, folder, process_group)
    corpus = prepare_corpus(folder.with_tokenizer(config))
    model = build_model(config, corpus, folder)
    with TrainingRun(config, folder, process_group, corpus, model, device, predicted_bytes) as run:
        run_steps(run, config.train.max_steps)
        return run.finish()


def run_steps(run: TrainingRun, until: int) -> None:
    """Train an entered run until it has made `until` steps, with all that is due after each of them."""
    while run.progress.step < until or run.progress.eval_due:
        if run.progress.eval_due:
            run.validate()
            continue
        run.set_lr()
        with run.meters.watch(run.progress.step):
            run.make_step()
        due = run.count_step()
        if (failed_step := run.read_metrics(due)) is not None:
            run.roll_back(failed_step)
            continue
        run.measure_speed(due)
        if due.log:
            run.log()
        if due.save:
            run.save()
        if due.stop:
            run.interrupt()
