"""One training run: everything that the loop in `train.loop` works on, and what it does with it."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from grouped_lm.config import Config
from grouped_lm.data import Corpus, build_tokenizer
from grouped_lm.data.loader import Prefetcher, TrainBatches, ValidWindows
from grouped_lm.distributed.parallel import parallelize
from grouped_lm.distributed.process_group import ProcessGroup
from grouped_lm.errors import DivergedError
from grouped_lm.evaluate.validation import validate
from grouped_lm.measure.memory import GIB
from grouped_lm.models.lm import LanguageModel, count_params
from grouped_lm.optim import build_optimizer, learning_rate, set_learning_rate
from grouped_lm.optim.ema import averaged_weights
from grouped_lm.optim.training_step import MIN_LOSS_SCALE, StepMetrics, TrainingStep
from grouped_lm.optim.used_rows import leave_out_unused_rows
from grouped_lm.runs.folder import COMPLETE, INTERRUPTED, RunFolder
from grouped_lm.runs.inputs import describe_inputs
from grouped_lm.runs.tracking import MetricsLog, start_tracking
from grouped_lm.system.console import TrainDisplay, peak_memory_gib
from grouped_lm.system.files import write_json
from grouped_lm.system.phases import phase, track
from grouped_lm.system.runtime import describe_environment
from grouped_lm.system.signals import StopSignals
from grouped_lm.system.watchdog import Watchdog
from grouped_lm.train.capture import CapturedStep
from grouped_lm.train.checkpoints import Checkpoints, describe_origin
from grouped_lm.train.meters import Meters
from grouped_lm.train.prior import PriorTraining
from grouped_lm.train.progress import Due
from grouped_lm.train.setup import write_tokens

Batch = TypeVar("Batch")
PREDICTION_ERROR = 0.15
"""Relative error of the predicted memory from which it is said. On a CPU the error is about 0.01."""


class StopRequested(Exception):
    """A signal came during a validation, which need not be finished."""


class TrainingRun:
    """A run between its first and its last step. Enter it as a context to show progress and to catch signals.

    The `folder` is locked. The `model` is new and on the CPU. It gets the weights of the last checkpoint.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        process_group: ProcessGroup,
        corpus: Corpus,
        model: LanguageModel,
        device: torch.device,
        predicted_bytes: int | None = None,
    ) -> None:
        self.config, self.folder, self.process_group, self.model = config, folder, process_group, model
        train, block_size, group = config.train, config.model.block_size, process_group
        tokens, quiet = corpus.train.tokens(), not group.is_first
        batches = TrainBatches(tokens, block_size, train.micro_batch_size, config.seed, group.rank, group.size)
        self.prefetcher = Prefetcher(batches.batch, device)
        self.valid = corpus.valid
        reading = folder.with_tokenizer(config)
        tokenizer = build_tokenizer(reading.tokenizer, reading.data)
        self.valid_on_the_way = self.valid.first(config.eval.max_tokens, tokenizer)
        valid_batch = train.eval_batch_size or train.share(group.size)
        self.windows, self.windows_on_the_way = (
            ValidWindows(text.tokens(), block_size, valid_batch) for text in (self.valid, self.valid_on_the_way)
        )
        parallel = parallelize(model, train, group, device)
        self.n_params, self.n_head_params = count_params(model)
        with phase("measuring the processor, and the memory of the head"):
            self.meters = Meters(config, parallel, device, corpus.train.tokens())
        whole = group.size > 1 or train.compile or bool(config.optim.ema)  # an average is of whole tables
        if not whole:
            leave_out_unused_rows(config, model, corpus.train.counts)
        with phase("building the optimizer"):
            optimizer = build_optimizer(config.optim, model)
        self.training_step = TrainingStep(config, parallel, optimizer, device)
        self.captured = CapturedStep(self.training_step) if train.cuda_graphs else None

        self.environment = group.on_first(describe_environment, device)
        if group.size > 1:
            self.environment["processes"] = group.size
        self.metrics_log = MetricsLog(folder.metrics)
        self.origin = describe_origin(config, corpus, self.environment)
        self.prior = PriorTraining(config, model, corpus.train, device, group) if config.prior.is_on else None
        parts = self.training_step, self.metrics_log, self.origin, group, self.prior
        self.checkpoints = Checkpoints(folder, config, *parts)
        self.progress, self.history = self.checkpoints.resume()
        environment = self.environment | {"commits": self.checkpoints.commits}
        group.on_first(folder.write_start, config, environment, describe_inputs(reading, corpus))
        group.on_first(write_tokens, folder, config, model.head)

        self.predicted_gib = None if predicted_bytes is None else predicted_bytes / GIB
        self.tracker = start_tracking(config, folder.path, quiet)
        self.tracker.rewind(self.metrics_log.rows())
        self.meters.start(self.progress.step, optimizer)
        self.history.start()
        self.signals, self._contexts = StopSignals(), ExitStack()
        # a method of the folder, not of this run: a cycle would outlive the run
        self.watchdog = Watchdog(folder.path, train.hang_minutes, folder.write_failure, group.rank)
        title = f"{config.model.name} {config.head.name}"
        self.display = TrainDisplay(title, train.max_steps, self.progress.step, quiet)

    def __enter__(self) -> "TrainingRun":
        for context in (self.signals.catch(), self.watchdog, self.display):
            self._contexts.enter_context(context)
        max_steps, warmup = self.config.train.max_steps, self.config.optim.warmup_steps
        if restarts := self.process_group.restarts:
            self.display.say(f"a process was lost; restart {restarts}, continuing from step {self.progress.step}")
        if other := self.environment.get("other_checkout"):
            self.display.say(f"gvc: warning: {other}")
        if self.valid.part:
            self.display.say(f"validation: {self.valid.part} (data.max_valid_tokens)")
        if self.valid_on_the_way is not self.valid:
            self.display.say(f"validation on the way: {self.valid_on_the_way.part} (eval.max_tokens)")
        if warmup >= max_steps - 1:  # the first step after warm-up has the peak, and the last one should have the floor
            end = "rises to the end" if warmup >= max_steps else "never falls"
            self.display.say(
                f"gvc: warning: optim.warmup_steps={warmup}, train.max_steps={max_steps}: the learning rate {end}"
            )
        self.model.train()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._contexts.__exit__(*exception)

    @property
    def has_steps_left(self) -> bool:
        """Whether the run has not reached `train.max_steps`."""
        return self.progress.step < self.config.train.max_steps

    def set_lr(self) -> None:
        """Set the learning rate of the next step."""
        self.lr = learning_rate(self.config.optim, self.progress.step, self.config.train.max_steps)
        if self.training_step.device.type == "cuda":  # there a captured step has it in fp32: a plain one is the same
            self.lr = torch.tensor(self.lr).item()
        set_learning_rate(self.training_step.optimizer, self.lr)

    def make_step(self) -> None:
        """Update the weights once."""
        (self.captured or self.training_step).make(self._micro_batches(), self.progress.step, self.lr)

    def _micro_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the micro-batches of the next step. The one after each is fetched while the device computes."""
        accum = self.config.train.grad_accum_steps
        first = (self.progress.step + self.history.skipped_steps) * accum
        for index in range(first, first + accum):
            input_ids, targets = self.prefetcher.batch(index)
            yield input_ids, targets
            if self.prior is not None:
                self.prior.train_on(input_ids, targets, index, self.lr / self.config.optim.lr)
            self.prefetcher.prefetch(index + 1)

    def fit_weight(self) -> LanguageModel:
        """Fit the share of the counts, if there are some, and return the model to evaluate; with averaged weights."""
        if self.prior is None:
            return self.model
        self.prior.fit_weight(self.progress.step)
        return self.prior.mixed

    def count_step(self) -> Due:
        """Count the step, and return the work that is due after it."""
        self.progress.step += 1
        train, step, is_last = self.config.train, self.progress.step, not self.has_steps_left
        self.watchdog.beat()
        self.display.step(step)
        stop, overdue = self.process_group.any(self.signals.received is not None, self.checkpoints.is_overdue())
        save_every = train.checkpoint_every_steps or max(1, train.max_steps // 10)
        eval_every = train.eval_every_steps
        self.progress.eval_due = not is_last and eval_every is not None and step % eval_every == 0
        return Due(
            log=is_last or step % train.log_every_steps == 0,
            validate=self.progress.eval_due,
            save=is_last or stop or overdue or step % save_every == 0,
            stop=stop and not is_last,
        )

    def read_metrics(self, due: Due) -> StepMetrics | None:
        """Read the metrics of the steps so far, if anything needs them, and add up their losses.

        Returns:
            The step to roll back, if there is one. A DivergedError ends the run if the config says so.
        """
        buffer, train = self.training_step.metrics, self.config.train
        if not (buffer.at_once or due.log or due.validate or due.save):
            return None
        for metrics in buffer.read():
            self.last_metrics = metrics
            if metrics.overflowed:
                self._count_overflow(metrics)
            if metrics.finite or metrics.overflowed:
                self.progress.add(metrics.losses)
                continue
            self.display.say(f"{metrics.problem} (train.on_nonfinite={train.on_nonfinite})")
            if train.on_nonfinite == "raise" or self.history.nonfinite + 1 > train.max_nonfinite:
                raise DivergedError(f"{metrics.problem}; a lower optim.lr or more optim.warmup_steps may help")
            self.history.nonfinite += 1
            if train.on_nonfinite == "rollback":
                return metrics
        return None

    def _count_overflow(self, metrics: StepMetrics) -> None:
        """Count a step that a smaller scale of the loss replaces. Raise a DivergedError if no scale is small enough."""
        history, step, scale = self.history, metrics.step, metrics.loss_scale or 0.0
        history.overflow_steps += 1
        if scale < MIN_LOSS_SCALE:
            raise DivergedError(
                f"train.dtype=float16: gradients overflow at step {step} even with a loss scale of {scale:g} "
                f"({history.overflow_steps} steps left out so far); take train.dtype=bfloat16 or float32, "
                "or a lower optim.lr"
            )
        self.display.say(
            f"step {step} left out: its float16 gradient overflowed; loss scale {scale:g} to {scale / 2:g}"
        )

    def roll_back(self, failed_step: StepMetrics) -> None:
        """Return to the last checkpoint, and continue with the text after the failed step."""
        next_text = failed_step.step + self.history.skipped_steps + 1
        self.progress = self.checkpoints.roll_back()
        if self.captured is not None:
            self.captured.forget()
        self.history.skipped_steps = next_text - self.progress.step
        self.meters.restart(self.progress.step)
        self.tracker.rewind(self.metrics_log.rows())

    def measure_speed(self, due: Due) -> None:
        """End the running measurement of speed and memory before other work than training steps."""
        if due.log or due.validate or due.save:
            self.speed, row = self.meters.stop(self.progress.step)
            self.progress.row |= row
            self._hold_prediction(row)

    def _hold_prediction(self, row: dict[str, Any]) -> None:
        """Hold the prediction that chose the micro-batch against the measured peak, once that is known."""
        measured, predicted = peak_memory_gib(row), self.predicted_gib
        if measured is None or predicted is None:
            return
        self.predicted_gib = None
        if abs(measured / predicted - 1) > PREDICTION_ERROR:
            self.display.say(
                f"gvc: a step needs {measured:.3f} GiB, and {predicted:.3f} GiB were predicted, by which "
                f"train.micro_batch_size={self.config.train.micro_batch_size} was chosen"
            )

    def log(self) -> None:
        """Write a row of metrics, if any step since the last row was finite."""
        progress = self.progress
        if not progress.loss_steps:
            return
        progress.row |= {
            **self._position(),
            **progress.pop_mean_losses(),
            "train/grad_norm": self.last_metrics.grad_norm if self.last_metrics.finite else None,  # JSON has no NaN
            "train/lr": self.lr,
        }
        if self.history.nonfinite:
            progress.row["train/nonfinite_steps"] = self.history.nonfinite
        if self.training_step.scaler.is_enabled():
            progress.row |= {
                "train/loss_scale": self.last_metrics.loss_scale,
                "train/overflow_steps": self.history.overflow_steps,
            }
        self.process_group.on_first(self._write_row, progress.row | self.speed)
        self.display.row(progress.step, progress.row | self.speed)

    def _position(self) -> dict[str, int]:
        step = self.progress.step
        return {"trainer/step": step, "trainer/tokens": step * self.meters.step_tokens}

    def _write_row(self, row: dict[str, Any]) -> None:
        self.metrics_log.append(row)
        self.tracker.log(row)

    def _until_signal(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, with a beat of the watchdog for each. Raise `StopRequested` after a signal."""
        for batch in batches:
            if self.process_group.any(self.signals.received is not None)[0]:
                raise StopRequested
            self.watchdog.beat()
            yield batch

    def validate(self) -> dict[str, float]:
        """Log and return the metrics of the validation set."""
        progress, group, device = self.progress, self.process_group, self.training_step.device
        text, windows = self.valid, self.windows
        if self.has_steps_left:
            text, windows = self.valid_on_the_way, self.windows_on_the_way
        batches = self._until_signal(windows.part(group.rank, group.size))
        batches = track(batches, "validating", -(-len(windows) // group.size))
        try:
            with averaged_weights(self.training_step.optimizer):
                metrics = validate(self.fit_weight(), batches, text.text_bytes, device, self.config.train.dtype, group)
        except StopRequested:
            self.save()  # with the validation still due
            self.interrupt()
        if not math.isfinite(metrics["val/loss"]):
            raise DivergedError(
                f"validation at step {progress.step}: the loss is not finite; a lower optim.lr may help"
            )
        if text.part:
            metrics["val/tokens"] = text.target_tokens
        self.training_step.model.reshard()
        group.on_first(self._write_row, self._position() | metrics)
        self.display.row(progress.step, progress.row | metrics)
        progress.eval_due = False
        self.meters.memory.restart()
        return metrics

    def save(self) -> None:
        """Write a checkpoint of this step."""
        with averaged_weights(self.training_step.optimizer), suppress(DivergedError):
            self.fit_weight()  # finite weights are saved as without a prior: train.on_nonfinite acts at the next step
        self.checkpoints.save(self.progress, self.history)

    def interrupt(self) -> NoReturn:
        """End the process after a signal. The state is saved."""
        step = self.progress.step
        by_torchrun = self.process_group.size != self.config.train.processes
        self.display.say(
            f"stopped at step {step} and saved; to continue{' with torchrun as before' if by_torchrun else ''}:\n"
            f"{self.folder.resume_command}"
        )
        self.process_group.on_first(write_json, self.folder.result, {"state": INTERRUPTED, "trainer/step": step})
        self.tracker.finish({"state": INTERRUPTED}, exit_code=1)
        self.signals.leave()

    def finish(self) -> dict[str, Any]:
        """Validate once more, write result.json, and return the result."""
        config, group, meters = self.config, self.process_group, self.meters
        final, head = self.validate(), self.model.head
        result = {
            "state": COMPLETE,
            "config_hash": self.origin["identity"]["config"],
            "commit": self.environment["commit"],
            "seed": config.seed,
            **({"init_from": config.init_from} if config.init_from else {}),
            "model": config.model.name,
            "head": config.head.name,
            "grouping": config.grouping.name if hasattr(head, "n_group") else None,
            "group_size": getattr(head, "group_size", None),
            "n_group": getattr(head, "n_group", None),
            "data": config.data.name,
            "tokenizer": config.tokenizer.label,
            "params/total": self.n_params,
            "params/head": self.n_head_params,
            **meters.speed(None),
            **self.progress.row,
            **self._position(),  # the last row is older than the last step if that one was left out
            **final,
            "time/total_s": self.history.total_seconds(),
            "time/checkpoint_s": self.history.checkpoint_seconds,
            "memory/peak_head_gib": meters.head_peak_gib,
            "throughput/roof_tflops_per_sec": meters.peak_flops_per_sec / 1e12,
        }
        if self.prior is not None:
            result |= {"prior": config.prior.mix, "memory/prior_gib": self.prior.head.counts.nbytes / GIB}
        if group.size > 1:
            result |= {"processes": group.size, "network/sent_bytes_per_step": meters.sent_bytes}
        group.on_first(write_json, self.folder.result, result)
        with phase("finishing the tracking"):
            self.tracker.finish(result)
        self.display.close(result)
        return group.on_first(lambda: result)
