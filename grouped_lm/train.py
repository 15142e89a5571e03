"""Training: one loop, read from top to bottom."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grouped_lm.checkpoint import load_latest, write_checkpoint
from grouped_lm.config import Config, config_hash
from grouped_lm.data import prepare_data
from grouped_lm.data.loader import TrainBatches, ValidWindows
from grouped_lm.data.tokenizer import vocab_size_of
from grouped_lm.display import PrepareDisplay, TrainDisplay
from grouped_lm.errors import DivergedError, DriftError, MemoryShortError
from grouped_lm.evaluate import evaluate
from grouped_lm.grouping import check_group_size
from grouped_lm.heads import needs_grouping
from grouped_lm.heads.base import HeadLoss
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
from grouped_lm.run_folder import COMPLETE, FAILED, INTERRUPTED, RunFolder
from grouped_lm.runtime import StopSignals, describe_environment, resolve_device, set_threads, write_json
from grouped_lm.scoring import autocast
from grouped_lm.tracking import MetricsLog, Tracker
from grouped_lm.train_state import pack, unpack


@dataclass
class Progress:
    """What the loop counts, saved with every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    loss_sums: dict[str, float] = field(default_factory=dict)
    """Losses since the last logged row, added up over `loss_steps` steps."""
    loss_steps: int = 0
    seconds: float = 0.0
    """Time spent before this process took over."""
    row: dict[str, Any] = field(default_factory=dict)
    """The last logged row."""

    def mean_losses(self) -> dict[str, float]:
        """Return the mean losses since the last row, and start anew."""
        means = {key: total / self.loss_steps for key, total in self.loss_sums.items()}
        self.loss_sums, self.loss_steps = {}, 0
        return means | {"train/perplexity": math.exp(min(means["train/loss"], 700.0))}


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
            known = out_of_memory(error, config)
            write_json(folder.result, {"state": FAILED, "reason": f"{known or error}"})
            if known is None:
                raise
            raise known from error


def _train(config: Config, folder: RunFolder) -> dict[str, Any]:
    cfg, block_size = config.train, config.model.block_size
    device = resolve_device(cfg.device)
    set_threads(cfg.threads)
    torch.manual_seed(config.seed)

    corpus = prepare_data(config.data, config.tokenizer)
    batches = TrainBatches(corpus.train.tokens(), block_size, cfg.micro_batch_size, config.seed)
    windows = ValidWindows(corpus.valid.tokens(), block_size, cfg.eval_batch_size or cfg.micro_batch_size)
    model = build_lm(config, corpus.train.counts, corpus.train.tokens).to(device)
    optimizer = build_optimizer(config.optim, model)
    forward = torch.compile(model) if cfg.compile else model

    log = MetricsLog(folder.metrics)
    identity = {
        "config": config_hash(config),
        "train_tokens": corpus.train.manifest["sha256"],
        "valid_tokens": corpus.valid.manifest["sha256"],
    }
    progress = resume(folder, model, optimizer, log, identity)
    environment = describe_environment(device)
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
    saved_at = started

    def save() -> None:
        spent = progress.seconds + time.monotonic() - started
        state = {"progress": vars(progress) | {"seconds": spent}, "metrics_bytes": log.size(), "identity": identity}
        write_checkpoint(folder.checkpoints, progress.step, pack(model, optimizer, state), cfg.keep_checkpoints)

    def judge() -> dict[str, Any]:
        figures = evaluate(model, windows, corpus.valid.text_bytes, device, cfg.dtype).metrics()
        where = {"trainer/step": progress.step, "trainer/tokens": progress.step * step_tokens}
        tracker.log(where | figures)
        display.row(progress.step, progress.row | figures)
        return figures

    title = f"{config.model.name} {config.head.name}"
    with StopSignals() as stop, TrainDisplay(title, cfg.max_steps, progress.step) as display:
        model.train()
        while progress.step < cfg.max_steps:
            lr = learning_rate(config.optim, progress.step, cfg.max_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr

            with memory.watch(progress.step - first_step):
                losses: list[HeadLoss] = []
                for micro_step in range(cfg.grad_accum_steps):
                    input_ids, targets = batches.batch(progress.step * cfg.grad_accum_steps + micro_step)
                    with autocast(device, cfg.dtype):
                        losses.append(forward(input_ids.to(device), targets.to(device)))
                    (losses[-1].objective() / cfg.grad_accum_steps).backward()
                grad_norm = clip_gradients(model, config.optim.grad_clip)
                add_losses(progress, losses)
                check_finite(progress, grad_norm, lr)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            display.step(progress.step)

            step, last, stopping = progress.step, progress.step == cfg.max_steps, stop.received is not None
            log_now = last or step % cfg.log_every_steps == 0
            eval_now = not last and cfg.eval_every_steps is not None and step % cfg.eval_every_steps == 0
            overdue = time.monotonic() - saved_at > 60 * cfg.checkpoint_every_minutes
            save_now = last or stopping or overdue or step % save_every == 0
            if log_now or eval_now or save_now:
                rate = speed.stop(step, step_tokens, device)
                progress.row |= {key: value for key, value in memory.read().items() if value is not None}
            if log_now:
                progress.row |= {
                    "trainer/step": step,
                    "trainer/tokens": step * step_tokens,
                    **progress.mean_losses(),
                    "train/grad_norm": grad_norm.item(),
                    "train/lr": lr,
                    "throughput/tokens_per_sec": rate,
                    "throughput/mfu": rate and rate * mfu_per_rate,
                    "time/step_ms": rate and 1000 * step_tokens / rate,
                }
                tracker.log(progress.row)
                display.row(step, progress.row)
            if eval_now:
                judge()
                memory.restart()
            if save_now:
                save()
                saved_at = time.monotonic()
            if stopping and not last:
                display.say(f"stopped at step {step} and saved; the same command with this folder goes on")
                write_json(folder.result, {"state": INTERRUPTED, "trainer/step": step})
                tracker.finish({"state": INTERRUPTED}, exit_code=1)
                stop.raise_if_received()
            if not speed.running and step - first_step >= UNTIMED_STEPS:
                speed.start(step, device)

        rate = speed.tokens_per_sec()
        result = {
            "state": COMPLETE,
            "config_hash": identity["config"],
            "commit": environment["commit"],
            "seed": config.seed,
            **describe_model(config, model),
            **progress.row,
            **judge(),
            "throughput/tokens_per_sec": rate,
            "throughput/mfu": rate and rate * mfu_per_rate,
            "time/total_s": progress.seconds + time.monotonic() - started,
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
        ConfigError: a group size above V, a device that is not there, a head tied to nothing or without the
            losses asked for.
        DataError: text that is missing, unreadable or too short.
        DriftError, RunFolderError: `run_dir` already holds something else.
    """
    resolve_device(config.train.device)
    check_head(config)
    if needs_grouping(config.head):
        check_group_size(config.head.group_size, vocab_size_of(config.tokenizer))
    if run_dir is not None:
        RunFolder(run_dir).check_same_run(config)
    with PrepareDisplay() as display:
        corpus = prepare_data(config.data, config.tokenizer, display.progress)
    TrainBatches(corpus.train.tokens(), config.model.block_size, config.train.micro_batch_size, config.seed)


def resume(
    folder: RunFolder, model: torch.nn.Module, optimizer: Any, log: MetricsLog, identity: dict[str, str]
) -> Progress:
    """Load the last checkpoint, if there is one, and cut the metrics back to it.

    Raises:
        DriftError: the checkpoint belongs to another config or other tokens.
        CheckpointError: there are checkpoints, and none can be trusted.
    """
    found = load_latest(folder.checkpoints)
    if found is None:
        log.cut(0)
        return Progress()
    state = unpack(found[1], model, optimizer)
    changed = [key for key in identity if state["identity"][key] != identity[key]]
    if changed:
        raise DriftError(
            f"the checkpoint in {folder.path} was made with another {', '.join(changed)}: "
            "restore what it was made with, or give another hydra.run.dir"
        )
    log.cut(state["metrics_bytes"])
    return Progress(**state["progress"])


def out_of_memory(error: Exception, config: Config) -> MemoryShortError | None:
    """Return what to tell a user whose device ran out of memory; None for any other error."""
    words = str(error).lower()
    if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in words):
        return None
    batch = config.train.micro_batch_size
    return MemoryShortError(
        f"out of memory with train.micro_batch_size={batch} and model.block_size={config.model.block_size}: "
        "take a smaller batch and more train.grad_accum_steps"
        + ("" if config.head.name != "dense" else ", or head.chunk_rows=256")
    )


def clip_gradients(model: torch.nn.Module, max_norm: float) -> Tensor:
    """Scale the gradient down to `max_norm` (0 leaves it alone) and return its norm before that."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)


def add_losses(progress: Progress, losses: list[HeadLoss]) -> None:
    """Add the mean losses of one step to the sums that the next row divides."""
    for key, part in (
        ("train/loss", "nll"),
        ("train/loss_group", "group_nll"),
        ("train/loss_token", "token_nll"),
    ):
        values = [getattr(loss, part) for loss in losses]
        if values[0] is not None:
            mean = torch.stack([value.detach() for value in values]).double().mean().item()
            progress.loss_sums[key] = progress.loss_sums.get(key, 0.0) + mean
    progress.loss_steps += 1


def check_finite(progress: Progress, grad_norm: Tensor, lr: float) -> None:
    """Refuse an update that would poison the weights; the checkpoints hold none such.

    Raises:
        DivergedError: the loss or the norm of its gradient is infinite or not a number.
    """
    loss = progress.loss_sums["train/loss"]
    if not (math.isfinite(loss) and math.isfinite(grad_norm.item())):
        raise DivergedError(
            f"diverged at step {progress.step}: loss {loss:g}, gradient norm {grad_norm.item():g}, "
            f"learning rate {lr:g}; a lower optim.lr or more optim.warmup_steps may help"
        )


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
