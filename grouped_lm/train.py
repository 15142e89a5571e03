"""Training: one loop, read from top to bottom."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grouped_lm.checkpoint import write_checkpoint
from grouped_lm.config import Config, TrainConfig, config_to_dict
from grouped_lm.data import prepare_data
from grouped_lm.data.feed import Feed
from grouped_lm.data.loader import TrainBatches, ValidWindows
from grouped_lm.data.tokenizer import vocab_size_of
from grouped_lm.display import PrepareDisplay, TrainDisplay
from grouped_lm.errors import ConfigError, DiskError, DivergedError
from grouped_lm.evaluate import evaluate
from grouped_lm.grouping import check_group_size
from grouped_lm.heads import needs_grouping
from grouped_lm.heads.base import HeadLoss
from grouped_lm.identity import config_hash, config_identity
from grouped_lm.measure import (
    UNTIMED_STEPS,
    StepMemory,
    Throughput,
    measure_gemm_flops_per_sec,
    measure_head_peak_gib,
)
from grouped_lm.models.build import build_lm, check_head, count_params
from grouped_lm.models.lm import LanguageModel, estimate_body_flops_per_token
from grouped_lm.optim import build_optimizer, learning_rate
from grouped_lm.resume import Progress, RunState, mirror_checkpoint
from grouped_lm.room import dry_run, explain_out_of_memory
from grouped_lm.run_folder import COMPLETE, FAILED, INTERRUPTED, RunFolder
from grouped_lm.runtime import describe_environment, resolve_device, set_threads, write_json
from grouped_lm.scoring import autocast
from grouped_lm.secret_values import refuse_secrets
from grouped_lm.signals import StopRequested, StopSignals
from grouped_lm.step_figures import StepFigures, Unread
from grouped_lm.tracking import MetricsLog, Tracker
from grouped_lm.train_state import finite_weights, pack
from grouped_lm.watchdog import Watchdog

SAME_BITS = ("python", "libraries", "cpu", "threads", "device", "gpu")
"""Of the environment, what decides the last bits of a figure."""


def train(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train one model in `run_dir`, or go on where its last checkpoint stands, and return its result.

    A folder whose result is complete is left as it is: running a command again does nothing twice.

    Raises:
        DataError, RunFolderError, DriftError, CheckpointError, DiskError, DivergedError: see `errors`.
        KeyboardInterrupt, SystemExit: asked to stop; the state was saved before.
    """
    folder = RunFolder(run_dir)
    with folder.lock():
        folder.check_same_run(config)
        result = folder.read_result()
        if result is not None and result["state"] == COMPLETE:
            return result
        try:
            return _train(config, folder)
        except Exception as error:
            known = explain(error, config, folder)
            with contextlib.suppress(OSError):  # a full disk takes no result either
                write_json(folder.result, failed(f"{known or error}"))
            if known is None:
                raise
            raise known from error


def _train(config: Config, folder: RunFolder) -> dict[str, Any]:
    cfg, block_size = config.train, config.model.block_size
    device = resolve_device(cfg.device)
    set_threads(cfg.threads)
    torch.manual_seed(config.seed)
    dry_run(config, device)

    corpus = prepare_data(config.data, config.tokenizer)
    batches = TrainBatches(corpus.train.tokens(), block_size, cfg.micro_batch_size, config.seed)
    windows = ValidWindows(corpus.valid.tokens(), block_size, cfg.eval_batch_size or cfg.micro_batch_size)
    model = build_lm(config, corpus.train.counts, corpus.train.tokens).to(device)
    optimizer = build_optimizer(config.optim, model)
    forward = torch.compile(model, mode=compile_mode(cfg, device)) if cfg.compile else model
    feed, unread = Feed(batches.batch, device), Unread(device)

    log = MetricsLog(folder.metrics)
    identity = {
        "config": config_hash(config),
        "train_tokens": corpus.train.manifest["sha256"],
        "valid_tokens": corpus.valid.manifest["sha256"],
    }
    environment = describe_environment(device)
    saved_with = {
        "identity": identity,
        "config": config_identity(config_to_dict(config)),
        "environment": {key: environment[key] for key in SAME_BITS},
    }
    state = RunState(folder, config, model, optimizer, log, saved_with)
    progress = state.resume()
    folder.write_start(config, environment)
    folder.write_tokens(config, model.head)
    tracker = Tracker(config, folder.path, log)

    step_tokens = cfg.micro_batch_size * cfg.grad_accum_steps * block_size
    forward_flops = estimate_body_flops_per_token(config.model, block_size) + model.head.flops_per_token()
    roof = measure_gemm_flops_per_sec(device, getattr(torch, cfg.dtype))
    mfu_per_rate = 3.0 * forward_flops / roof  # backward takes twice the forward pass
    head_peak = measure_head_peak_gib(
        model.head, cfg.micro_batch_size * block_size, config.model.n_embd, model.head.vocab_size, device
    )
    memory, speed = StepMemory(device, model, optimizer), Throughput()
    save_every = cfg.checkpoint_every_steps or max(1, cfg.max_steps // 10)
    first_step, started = progress.step, time.monotonic()
    saved_at, saved_step = started, progress.step if progress.step else None

    def save() -> None:
        nonlocal saved_at, saved_step
        if saved_step == progress.step:
            return
        begun = time.monotonic()
        if not finite_weights(model):
            raise DivergedError(f"diverged at step {progress.step}: weights are no finite numbers; nothing was saved")
        counted = vars(progress) | {"seconds": progress.seconds + begun - started}
        files = pack(model, optimizer, saved_with | {"progress": counted, "metrics_bytes": log.size()})
        write_checkpoint(folder.checkpoints, progress.step, files, cfg.keep_checkpoints)
        mirror_checkpoint(folder.mirror(config), progress.step, files, log, cfg.keep_checkpoints)
        saved_at, saved_step = time.monotonic(), progress.step
        progress.checkpoint_seconds += saved_at - begun

    def judge() -> dict[str, Any]:
        batches_left: Any = watchdog.between(stop.between(windows))
        figures = evaluate(model, batches_left, corpus.valid.text_bytes, device, cfg.dtype).metrics()
        where = {"trainer/step": progress.step, "trainer/tokens": progress.step * step_tokens}
        tracker.log(where | figures)
        display.row(progress.step, progress.row | figures)
        progress.eval_due = False
        return figures

    def leave() -> None:
        display.say(f"stopped at step {progress.step} and saved; the same command with this folder goes on")
        write_json(folder.result, {"state": INTERRUPTED, "trainer/step": progress.step})
        tracker.finish({"state": INTERRUPTED}, exit_code=1)
        stop.leave()

    title = f"{config.model.name} {config.head.name}"
    hang = Watchdog(folder.path, cfg.hang_minutes, lambda why: write_json(folder.result, failed(why)))
    with StopSignals() as stop, hang as watchdog, TrainDisplay(title, cfg.max_steps, progress.step) as display:
        model.train()
        while progress.step < cfg.max_steps or progress.eval_due:
            if progress.eval_due:
                try:
                    judge()
                except StopRequested:
                    save()  # with the evaluation still due
                    leave()
                memory.restart()
                continue
            if not speed.running and progress.step - first_step >= UNTIMED_STEPS:
                speed.start(progress.step, device)
            lr = learning_rate(config.optim, progress.step, cfg.max_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr

            with memory.watch(progress.step - first_step):
                losses: list[HeadLoss] = []
                for micro_step in range(cfg.grad_accum_steps):
                    place = (progress.step + progress.steps_passed_over) * cfg.grad_accum_steps + micro_step
                    input_ids, targets = feed.batch(place)
                    with autocast(device, cfg.dtype):
                        losses.append(forward(input_ids, targets))
                    (losses[-1].objective() / cfg.grad_accum_steps).backward()
                    feed.stage(place + 1)
                grad_norm = clip_gradients(model, config.optim.grad_clip)
                unread.add(optimizer, losses, grad_norm, progress.step, lr)
                optimizer.step()  # passes over a step that is not finite
                optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            watchdog.beat()
            display.step(progress.step)

            step, last, stopping = progress.step, progress.step == cfg.max_steps, stop.received is not None
            log_due = last or step % cfg.log_every_steps == 0
            eval_now = not last and cfg.eval_every_steps is not None and step % cfg.eval_every_steps == 0
            overdue = time.monotonic() - saved_at > 60 * cfg.checkpoint_every_minutes
            save_now = last or stopping or overdue or step % save_every == 0
            if unread.at_once or log_due or eval_now or save_now:
                done = unread.read()
                bad = account(progress, done, cfg, display.say)
                if bad is not None:
                    passed, count = bad.step + progress.steps_passed_over + 1, progress.nonfinite + 1
                    progress = state.go_back()
                    progress.steps_passed_over = passed - progress.step
                    progress.nonfinite, saved_step, first_step = count, progress.step, progress.step
                    continue
            log_now = log_due and progress.loss_steps > 0
            if log_now or eval_now or save_now:
                rate = speed.stop(step, step_tokens, device)
                progress.row |= {key: value for key, value in memory.read().items() if value is not None}
            if log_now:
                progress.row |= {
                    "trainer/step": step,
                    "trainer/tokens": step * step_tokens,
                    **progress.mean_losses(),
                    "train/grad_norm": done[-1].grad_norm if done[-1].finite else None,  # JSON has no NaN
                    "train/lr": lr,
                    "throughput/tokens_per_sec": rate,
                    "throughput/mfu": rate and rate * mfu_per_rate,
                    "time/step_ms": rate and 1000 * step_tokens / rate,
                }
                if progress.nonfinite:
                    progress.row["train/nonfinite_steps"] = progress.nonfinite
                tracker.log(progress.row)
                display.row(step, progress.row)
            progress.eval_due = eval_now  # saved with the step, so that whoever goes on from it makes up for it
            if save_now:
                save()
            if stopping and not last:
                leave()

        try:
            final = judge()
        except StopRequested:
            leave()
        rate = speed.tokens_per_sec()
        result = {
            "state": COMPLETE,
            "config_hash": identity["config"],
            "commit": environment["commit"],
            "seed": config.seed,
            **describe_model(config, model),
            **progress.row,
            **final,
            "throughput/tokens_per_sec": rate,
            "throughput/mfu": rate and rate * mfu_per_rate,
            "time/total_s": progress.seconds + time.monotonic() - started,
            "time/checkpoint_s": progress.checkpoint_seconds,
            "memory/peak_head_gib": head_peak,
            "throughput/roof_tflops_per_sec": roof / 1e12,
            "time/step_ms": rate and 1000 * step_tokens / rate,
        }
        write_json(folder.result, result)
        tracker.finish(result)
    display.close(result)
    return result


def preflight(config: Config, run_dir: Path | None = None) -> None:
    """Refuse what cannot run, before any folder is made; prepare the data on the way.

    Raises:
        ConfigError: a group size above V, a device that is not there, CUDA graphs without one, a head tied to nothing
            or without the losses asked for.
        DataError: text that is missing, unreadable or too short.
        DriftError, RunFolderError: `run_dir` already holds something else.
    """
    refuse_secrets(config_to_dict(config))
    compile_mode(config.train, resolve_device(config.train.device))
    check_head(config)
    if needs_grouping(config.head):
        check_group_size(config.head.group_size, vocab_size_of(config.tokenizer))
    if run_dir is not None:
        RunFolder(run_dir).check_same_run(config)
    with PrepareDisplay() as display:
        corpus = prepare_data(config.data, config.tokenizer, display.progress)
    TrainBatches(corpus.train.tokens(), config.model.block_size, config.train.micro_batch_size, config.seed)


def explain(error: Exception, config: Config, folder: RunFolder) -> Exception | None:
    """Return the one line for a machine that is short of memory or disk; None for any other error."""
    if isinstance(error, OSError):
        return DiskError(
            f"{folder.path} cannot be written ({error.strerror or error}); the checkpoints there are untouched: "
            "make room and run the same command again"
        )
    return explain_out_of_memory(error, config, resolve_device(config.train.device))


def failed(reason: str) -> dict[str, Any]:
    """Return the result of a run that did not end well."""
    return {"state": FAILED, "reason": reason}


def clip_gradients(model: torch.nn.Module, max_norm: float) -> Tensor:
    """Scale the gradient down to `max_norm` (0 leaves it alone) and return its norm before that."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)


def account(
    progress: Progress, done: list[StepFigures], cfg: TrainConfig, say: Callable[[str], None]
) -> StepFigures | None:
    """Count steps that were read, and return the one from which to go back, if there is one.

    Raises:
        DivergedError: a step was not finite, and `train.on_nonfinite` or `train.max_nonfinite` ends the run.
    """
    for figures in done:
        if figures.finite:
            progress.add(figures.losses)
            continue
        say(f"{figures.problem} (train.on_nonfinite={cfg.on_nonfinite})")
        if cfg.on_nonfinite == "raise" or progress.nonfinite + 1 > cfg.max_nonfinite:
            raise DivergedError(f"{figures.problem}; a lower optim.lr or more optim.warmup_steps may help")
        if cfg.on_nonfinite == "rollback":
            return figures
        progress.nonfinite += 1
    return None


def compile_mode(cfg: TrainConfig, device: torch.device) -> str | None:
    """Return the mode of `torch.compile`: with `train.cuda_graphs` each pass is recorded and launched as one.

    Raises:
        ConfigError: CUDA graphs without a GPU.
    """
    if cfg.cuda_graphs and device.type != "cuda":
        raise ConfigError(f"train.cuda_graphs=true needs a GPU, got train.device={cfg.device}, which is {device} here")
    return "reduce-overhead" if cfg.cuda_graphs else None


def describe_model(config: Config, model: LanguageModel) -> dict[str, Any]:
    """Return the labels and sizes by which runs are compared."""
    head = model.head
    total, own = count_params(model)
    return {
        "model": config.model.name,
        "head": config.head.name,
        "grouping": config.grouping.name if hasattr(head, "n_group") else None,
        "group_size": getattr(head, "group_size", None),
        "n_group": getattr(head, "n_group", None),
        "data": config.data.name,
        "tokenizer": config.tokenizer.label,
        "params/total": total,
        "params/head": own,
    }
