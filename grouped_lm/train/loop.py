"""Training: one loop, read from top to bottom."""

import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from grouped_lm.config import Config, TrainConfig, config_to_dict
from grouped_lm.data import prepare_data
from grouped_lm.data.loader import TrainBatches, ValidWindows
from grouped_lm.data.prefetch import Prefetcher
from grouped_lm.distributed.parallel import clip_gradients, count_targets, parallelize
from grouped_lm.distributed.process_group import ProcessGroup, join_process_group, rank_and_size
from grouped_lm.distributed.traffic import StepTraffic
from grouped_lm.errors import DiskError, DivergedError, GvcError
from grouped_lm.evaluate.validation import validate
from grouped_lm.heads.base import HeadLoss
from grouped_lm.jobs.launch import launch
from grouped_lm.measure.memory import StepMemory, measure_head_peak_gib
from grouped_lm.measure.throughput import UNTIMED_STEPS, Throughput, measure_gemm_flops_per_sec
from grouped_lm.models.build import build_lm, count_params
from grouped_lm.models.lm import LanguageModel, estimate_body_flops_per_token
from grouped_lm.optim.adamw import build_optimizer, learning_rate
from grouped_lm.optim.step_metrics import StepMetrics, StepMetricsBuffer
from grouped_lm.plan.memory_check import dry_run, explain_out_of_memory
from grouped_lm.runs.checkpoint import write_checkpoint
from grouped_lm.runs.folder import COMPLETE, INTERRUPTED, RunFolder, failed
from grouped_lm.runs.identity import config_hash, config_identity
from grouped_lm.runs.tracking import MetricsLog, Tracker
from grouped_lm.runs.train_state import finite_weights, pack
from grouped_lm.system.console import TrainDisplay
from grouped_lm.system.files import write_json
from grouped_lm.system.precision import autocast
from grouped_lm.system.runtime import describe_environment, keep_freed_memory, resolve_device, set_threads
from grouped_lm.system.signals import StopRequested, StopSignals
from grouped_lm.system.watchdog import Watchdog
from grouped_lm.train.resume import Progress, RunState, mirror_checkpoint

SAME_BITS = ("commit", "python", "libraries", "cpu", "threads", "device", "gpu", "processes")
"""Of the environment, what decides the last bits of a figure."""


def train(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train one model in `run_dir`, or go on where its last checkpoint stands, and return its result.

    A folder whose result is complete is left as it is: running a command again does nothing twice.

    Raises:
        DataError, RunFolderError, DriftError, CheckpointError, DiskError, DivergedError: see `errors`.
        KeyboardInterrupt, SystemExit: asked to stop; the state was saved before.
    """
    if config.train.processes > 1 and rank_and_size()[1] == 1:
        return launch(config, run_dir)
    device = resolve_device(config.train.device)
    with (
        join_process_group(config.train.processes, device, config.train.hang_minutes) as process_group,
        ExitStack() as held,
    ):
        folder = RunFolder(
            Path(process_group.on_first(lambda: str(run_dir.absolute() if process_group.size > 1 else run_dir)))
        )

        def enter() -> dict[str, Any] | None:
            held.enter_context(folder.lock())
            folder.check_same_run(config, process_group.restarts)
            return folder.read_result()

        result = process_group.on_first(enter)
        if result is not None and result["state"] == COMPLETE:
            return result
        try:
            return _train(config, folder, process_group)
        except Exception as error:
            known = explain(error, config, folder)
            told = known or error
            if isinstance(told, GvcError):
                process_group.publish_error(told)
            if process_group.size == 1 or (
                process_group.is_first and isinstance(told, GvcError)
            ):  # a lost process is not the end
                with contextlib.suppress(OSError):  # a full disk takes no result either
                    write_json(folder.result, failed(f"{told}"))
            if known is None:
                raise
            raise known from error


def _train(config: Config, folder: RunFolder, process_group: ProcessGroup) -> dict[str, Any]:
    cfg, block_size = config.train, config.model.block_size
    device, share = process_group.device(resolve_device(cfg.device)), cfg.share(process_group.size)
    set_threads(cfg.threads, process_group.local_size)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    if process_group.size == 1 or cfg.strategy == "ddp":
        process_group.on_first(dry_run, config, device, process_group.size, process_group.local_size)

    corpus = prepare_data(config.data, config.tokenizer)
    tokens = corpus.train.tokens()
    batches = TrainBatches(
        tokens, block_size, cfg.micro_batch_size, config.seed, process_group.rank, process_group.size
    )
    windows = ValidWindows(corpus.valid.tokens(), block_size, cfg.eval_batch_size or share)
    model = build_lm(config, corpus.train.counts, corpus.train.tokens)
    spread = parallelize(model, cfg, process_group, device)
    optimizer = build_optimizer(config.optim, model)
    prefetcher, unread = Prefetcher(batches.batch, device), StepMetricsBuffer(device)

    log = MetricsLog(folder.metrics)
    identity = {
        "config": config_hash(config),
        "train_tokens": corpus.train.manifest["sha256"],
        "valid_tokens": corpus.valid.manifest["sha256"],
    }
    environment = process_group.on_first(describe_environment, device) | (
        {"processes": process_group.size} if process_group.size > 1 else {}
    )
    saved_with = {
        "identity": identity,
        "config": config_identity(config_to_dict(config)),
        "environment": {key: environment[key] for key in SAME_BITS if key in environment},
    }
    state = RunState(folder, config, model, optimizer, log, saved_with, process_group)
    progress = state.resume()
    process_group.on_first(folder.write_start, config, environment | {"commits": state.commits})
    process_group.on_first(folder.write_tokens, config, model.head)
    tracker = Tracker(config, folder.path, log, quiet=not process_group.is_first)

    step_tokens = cfg.micro_batch_size * cfg.grad_accum_steps * block_size
    forward_flops = estimate_body_flops_per_token(config.model, block_size) + model.head.flops_per_token()
    roof = measure_gemm_flops_per_sec(device, getattr(torch, cfg.dtype))
    mfu_per_rate = 3.0 * forward_flops / roof / process_group.size  # backward takes twice the forward pass

    def speeds(rate: float | None) -> dict[str, float | None]:
        return {
            "throughput/tokens_per_sec": rate,
            "throughput/mfu": rate and rate * mfu_per_rate,
            "time/step_ms": rate and 1000 * step_tokens / rate,
        }

    head_peak = None  # shards are not whole outside of a step
    if not spread.shards:
        n_tokens, width, vocab_size = share * block_size, config.model.n_embd, model.head.vocab_size
        head_peak = measure_head_peak_gib(model.head, n_tokens, width, vocab_size, device)
    memory = StepMemory(device, model, optimizer, held_bytes=spread.held_bytes())
    speed, traffic = Throughput(), StepTraffic()
    save_every = cfg.checkpoint_every_steps or max(1, cfg.max_steps // 10)
    first_step, started = progress.step, time.monotonic()
    saved_at, saved_step = started, progress.step if progress.step else None

    def save() -> None:
        nonlocal saved_at, saved_step
        if saved_step == progress.step:
            return
        begun = time.monotonic()
        if process_group.any(not finite_weights(model))[0]:
            raise DivergedError(f"diverged at step {progress.step}: weights are no finite numbers; nothing was saved")
        counted = vars(progress) | {"seconds": progress.seconds + begun - started}
        lately = {"progress": counted, "metrics_bytes": log.size(), "commits": state.commits}
        files = pack(model, optimizer, saved_with | lately, process_group)

        def write() -> None:
            write_checkpoint(folder.checkpoints, progress.step, files, cfg.keep_checkpoints)
            mirror_checkpoint(state.mirrors, progress.step, files, log, cfg.keep_checkpoints)

        process_group.on_first(write)
        saved_at, saved_step = time.monotonic(), progress.step
        progress.checkpoint_seconds += saved_at - begun

    def judge() -> dict[str, Any]:
        part = watchdog.between(stop.between(windows.part(process_group.rank, process_group.size), process_group.any))
        part = display.validating(part, -(-len(windows) // process_group.size))
        figures = validate(model, part, corpus.valid.text_bytes, device, cfg.dtype, process_group)
        spread.rest()
        where = {"trainer/step": progress.step, "trainer/tokens": progress.step * step_tokens}
        process_group.on_first(tracker.log, where | figures)
        display.row(progress.step, progress.row | figures)
        progress.eval_due = False
        return figures

    def leave() -> None:
        display.say(f"stopped at step {progress.step} and saved; the same command with this folder goes on")
        process_group.on_first(write_json, folder.result, {"state": INTERRUPTED, "trainer/step": progress.step})
        tracker.finish({"state": INTERRUPTED}, exit_code=1)
        stop.leave()

    title = f"{config.model.name} {config.head.name}"

    def note_hang(reason: str) -> None:
        if process_group.is_first:
            write_json(folder.result, failed(reason))

    hang = Watchdog(folder.path, cfg.hang_minutes, note_hang, process_group.rank)
    shown = TrainDisplay(title, cfg.max_steps, progress.step, quiet=not process_group.is_first)
    with StopSignals() as stop, hang as watchdog, shown as display:
        if process_group.restarts:
            display.say(f"a process was lost; restart {process_group.restarts}, going on from step {progress.step}")
        if config.optim.warmup_steps >= cfg.max_steps:
            display.say(
                f"gvc: warning: optim.warmup_steps={config.optim.warmup_steps}, train.max_steps={cfg.max_steps}: "
                "the learning rate rises to the end"
            )
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

            with memory.watch(progress.step - first_step), traffic.watch(progress.step - first_step):
                losses: list[HeadLoss] = []
                for micro_step in range(cfg.grad_accum_steps):
                    place = (progress.step + progress.skipped_steps) * cfg.grad_accum_steps + micro_step
                    input_ids, targets = prefetcher.batch(place)
                    counted = count_targets(targets, process_group)
                    with spread.micro_step(last=micro_step == cfg.grad_accum_steps - 1):
                        with autocast(device, cfg.dtype):
                            losses.append(spread.mean_loss(input_ids, targets, counted))
                        (losses[-1].objective() / cfg.grad_accum_steps).backward()
                    prefetcher.prefetch(place + 1)
                losses = spread.add_up(losses)
                grad_norm = clip_gradients(model, config.optim.grad_clip)
                unread.add(optimizer, losses, grad_norm, progress.step, lr)
                optimizer.step()  # passes over a step that is not finite
                optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            watchdog.beat()
            display.step(progress.step)

            step, last = progress.step, progress.step == cfg.max_steps
            late = time.monotonic() - saved_at > 60 * cfg.checkpoint_every_minutes
            stopping, overdue = process_group.any(stop.received is not None, late)
            log_due = last or step % cfg.log_every_steps == 0
            eval_now = not last and cfg.eval_every_steps is not None and step % cfg.eval_every_steps == 0
            save_now = last or stopping or overdue or step % save_every == 0
            if unread.at_once or log_due or eval_now or save_now:
                done = unread.read()
                bad = account(progress, done, cfg, display.say)
                if bad is not None:
                    passed, before = bad.step + progress.skipped_steps + 1, progress
                    now = time.monotonic()
                    progress = state.go_back()
                    progress.skipped_steps, progress.nonfinite = passed - progress.step, before.nonfinite + 1
                    progress.seconds, started = before.seconds + now - started, now
                    progress.checkpoint_seconds = before.checkpoint_seconds
                    saved_step, first_step = progress.step, progress.step
                    speed.drop()
                    continue
            log_now = log_due and progress.loss_steps > 0
            if log_now or eval_now or save_now:
                rate = speed.stop(step, step_tokens, device)
                if rate is not None:
                    progress.row |= speeds(speed.tokens_per_sec())
                progress.row |= {key: value for key, value in memory.read().items() if value is not None}
            if log_now:
                progress.row |= {
                    "trainer/step": step,
                    "trainer/tokens": step * step_tokens,
                    **progress.mean_losses(),
                    "train/grad_norm": done[-1].grad_norm if done[-1].finite else None,  # JSON has no NaN
                    "train/lr": lr,
                }
                if progress.nonfinite:
                    progress.row["train/nonfinite_steps"] = progress.nonfinite
                process_group.on_first(tracker.log, progress.row | speeds(rate))
                display.row(step, progress.row | speeds(rate))
            progress.eval_due = eval_now  # saved with the step, so that whoever goes on from it makes up for it
            if save_now:
                save()
            if stopping and not last:
                leave()

        try:
            final = judge()
        except StopRequested:
            leave()
        result = {
            "state": COMPLETE,
            "config_hash": identity["config"],
            "commit": environment["commit"],
            "seed": config.seed,
            **describe_model(config, model),
            **speeds(None),
            **progress.row,
            **final,
            "time/total_s": progress.seconds + time.monotonic() - started,
            "time/checkpoint_s": progress.checkpoint_seconds,
            "memory/peak_head_gib": head_peak,
            "throughput/roof_tflops_per_sec": roof / 1e12,
        }
        if process_group.size > 1:
            result |= {"processes": process_group.size, "network/sent_bytes_per_step": traffic.sent}
        process_group.on_first(write_json, folder.result, result)
        tracker.finish(result)
    display.close(result)
    return process_group.on_first(lambda: result)


def explain(error: Exception, config: Config, folder: RunFolder) -> GvcError | None:
    """Return the one line for a machine that is short of memory or disk; None for any other error."""
    if isinstance(error, OSError):
        return DiskError(
            f"{folder.path} cannot be written ({error.strerror or error}); the checkpoints there are untouched: "
            "make room and run the same command again"
        )
    return explain_out_of_memory(error, config, resolve_device(config.train.device), rank_and_size()[1])


def account(
    progress: Progress, done: list[StepMetrics], cfg: TrainConfig, say: Callable[[str], None]
) -> StepMetrics | None:
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
