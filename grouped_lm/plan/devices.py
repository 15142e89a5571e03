"""What a run will need on several devices, before it runs: memory on each, bytes between them, time of a step.

Letters: see `plan_exchange`, which says what is sent.

Sources: what stays in shards, Rajbhandari et al. 2020 (arXiv 1910.02054), section 5, and Zhao et al. 2023 (arXiv
2304.11277).
"""

import dataclasses
from typing import Any

import numpy as np
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from grouped_lm.config import Config
from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, DenseConfig
from grouped_lm.measure.devices import Device
from grouped_lm.measure.interconnects import Interconnect
from grouped_lm.measure.live_bytes import KINDS, Moments
from grouped_lm.plan.communication import (
    Weights,
    ddp_exposed_s,
    ddp_sent_bytes,
    fsdp2_exposed_s,
    fsdp2_sent_bytes,
    states_sent_bytes,
)
from grouped_lm.plan.fake_step import fake_model, fake_step, with_shape, with_train
from grouped_lm.plan.heads import seconds_per_step, step_flops_per_token

STRATEGIES = ("ddp", "fsdp2")
VOCAB_PARALLEL = "ddp vocab_parallel"
"""DDP with tables in rows."""


@dataclasses.dataclass(frozen=True)
class DevicesPlan:
    """What each of W processes needs for a step of one head, with its part of the batch."""

    head: str
    strategy: str
    processes: int
    peak_bytes: int
    weights_bytes: int
    optimizer_bytes: int
    gradients_bytes: int
    """DDP's buckets, or the shards."""
    sent_bytes: int
    """By each process in an optimizer step."""
    compute_s: float
    exchange_s: float
    """Of all that is sent, hidden behind the computation or not."""
    exposed_s: float
    """Of it, what is not hidden."""
    tokens_per_sec: float
    """Of all processes together."""
    hours: float

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and optimizer state."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def step_s(self) -> float:
        """Seconds of an optimizer step."""
        return self.compute_s + self.exposed_s

    @property
    def efficiency(self) -> float:
        """Share of the time that is spent computing."""
        return self.compute_s / self.step_s


def activations(step: Moments) -> np.ndarray:
    """Return the (moments,) bytes that are neither weights, gradients nor optimizer state."""
    return step.live[:, [KINDS.index(kind) for kind in ("body", "head", "temporary")]].sum(1)


def ddp_peak_bytes(step: Moments, weights: Weights) -> int:
    """Return the peak on each device: 4 P and the most of activations and the gradient that is just made.

    Weights, two averages and the buckets, which live through the whole step; a gradient exists beside its place in a
    bucket until it is copied there. Gradients of tables in rows have no bucket, and live from when they are made.

    Args:
        step: of one process with its part of the batch, see `fake_step`.
        weights: not cut, but for such tables.
    """
    gradients = step.live[:, KINDS.index("gradients")]
    made = np.maximum(np.diff(gradients, prepend=gradients[:1]), 0)
    of_rows = np.isin(made, weights.rows)
    kept = np.where(of_rows, made, 0).cumsum() + np.where(of_rows, 0, made)
    return 3 * weights.total + weights.in_buckets + int((activations(step) + kept).max())


def fsdp2_peak_bytes(step: Moments, weights: Weights, processes: int) -> int:
    """Return the peak on each device: 3 P / W, and the most of two moments.

    While blocks work: activations, R, the rest's gradients so far in full, the blocks' in shards, and blocks in full.
    These are 2 P_b until the backward pass begins, the last block and the buffer that it came in; 3 P_b in its first
    block, with the next one, which is gathered ahead, and gradients; 4 P_b in all others, with what the one before
    still sends. When all is done: 3 R, the rest's weights, its gradients and the buffer that they are sent from, and
    the shards of the blocks' gradients. The backward pass makes gradients in the order of the model's end, its blocks,
    its beginning. Sends that last long keep a buffer more.

    Args:
        step: of one process with its part of the batch, see `fake_step`.
        weights: cut for W processes.
        processes: W.
    """
    gradients = step.live[:, KINDS.index("gradients")]
    of_blocks = np.clip(gradients - weights.behind, 0, weights.blocks)
    held = activations(step) + gradients - of_blocks + of_blocks // processes
    copies = np.select([of_blocks == 0, of_blocks <= weights.largest_block], [2, 3], 4)
    gathered = copies * weights.largest_block
    working = int((held + gathered).max()) + weights.rest
    done = 3 * weights.rest + weights.blocks // processes
    return 3 * weights.total // processes + max(working, done)


def plan_devices(
    config: Config, processes: int, device: Device, link: Interconnect, tokens: int, vocab_size: int | None = None
) -> list[DevicesPlan]:
    """Plan the run of `config` on W devices, by each strategy; with `train.vocab_parallel` by that, too.

    V is the tokenizer's where none is given.

    Raises:
        ConfigError: W processes cannot take equal parts of a batch, or V rows.
        DataDependentOutputException, DynamicOutputShapeException: the head's sizes depend on the tokens of a batch.
    """
    micro_steps = config.train.grad_accum_steps
    part = with_shape(config, batch=config.train.share(processes))
    n_tokens = config.train.micro_batch_size * config.model.block_size * micro_steps
    plans = []
    for strategy in (*STRATEGIES, *((VOCAB_PARALLEL,) if config.train.vocab_parallel else ())):
        own_part = with_train(part, vocab_parallel=strategy == VOCAB_PARALLEL)
        with FakeTensorMode():
            model = fake_model(own_part, vocab_size, processes)
        if strategy != "fsdp2":  # whose step DDP's is
            step = fake_step(own_part, processes, vocab_size)
        weights = Weights.of(model, processes if strategy == "fsdp2" else 1)
        own = weights.total // processes if strategy == "fsdp2" else weights.total
        flops = step_flops_per_token(own_part, model)
        compute_s = seconds_per_step(part, flops, own // 4, step.made, device)
        if strategy == "fsdp2":
            later = weights.rest // processes if micro_steps > 1 else 0  # shards of gradients of micro-steps before
            one_step = fake_step(with_train(own_part, grad_accum_steps=1), vocab_size=vocab_size)
            peak = fsdp2_peak_bytes(one_step, weights, processes) + later
            sent = fsdp2_sent_bytes(weights, processes, micro_steps, link)
            exposed_s = fsdp2_exposed_s(compute_s, weights, processes, micro_steps, link)
        else:
            peak, sent = ddp_peak_bytes(step, weights), ddp_sent_bytes(weights, processes)
            states = states_sent_bytes(own_part, model, processes, link)
            exposed_s = ddp_exposed_s(compute_s, sent / link.bytes_per_sec, weights, micro_steps)
            exposed_s, sent = exposed_s + states / link.bytes_per_sec, sent + states
        rate = n_tokens / (compute_s + exposed_s)
        plans.append(
            DevicesPlan(
                head=config.head.name,
                strategy=strategy,
                processes=processes,
                peak_bytes=peak,
                weights_bytes=own,
                optimizer_bytes=2 * own,
                gradients_bytes=own,
                sent_bytes=sent,
                compute_s=compute_s,
                exchange_s=sent / link.bytes_per_sec,
                exposed_s=exposed_s,
                tokens_per_sec=rate,
                hours=tokens / rate / 3600,
            )
        )
    return plans


def plan_heads_on_devices(
    config: Config, processes: int, device: Device, link: Interconnect, tokens: int | None = None
) -> list[DevicesPlan]:
    """Plan the config's own head and the dense one on W devices; see `plan_devices`.

    Args:
        config: the run.
        processes: W.
        device: each of them.
        link: between them.
        tokens: of the whole training; None means those of the config.

    Raises:
        ConfigError: as `plan_devices`, or a head whose sizes depend on the tokens of a batch or of the text.
    """
    train = config.train
    total = tokens or train.max_steps * train.micro_batch_size * train.grad_accum_steps * config.model.block_size
    heads: list[Any] = [config.head]
    if config.head.name != "dense":
        heads.insert(0, DenseConfig(tied=config.model.embedding == "table"))
    if HEADS[config.head.name][1].sizes_follow_text:
        raise ConfigError(unplannable(config.head.name))
    plans: list[DevicesPlan] = []
    for head in heads:
        try:
            plans += plan_devices(dataclasses.replace(config, head=head), processes, device, link, total)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ConfigError(unplannable(head.name)) from error
    return plans


def unplannable(head: str) -> str:
    """Return why a head cannot be planned."""
    return f"head={head} is not planned: its sizes depend on the tokens of a batch or of the text"
