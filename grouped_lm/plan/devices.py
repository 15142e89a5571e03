"""Predict a run on several devices: memory of each one, bytes between them, and the time of a step.

Letters: W processes; P bytes of all weights (fp32), P_b of a block and R outside the blocks (`plan/communication.py`).

Sources: Rajbhandari et al. 2020 (arXiv 1910.02054), section 5, and Zhao et al. 2023 (arXiv 2304.11277) for shards.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
from torch._subclasses.fake_tensor import FakeTensorMode

from grouped_lm.config import Config
from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, DenseConfig
from grouped_lm.measure.devices import Device, Interconnect
from grouped_lm.measure.live_bytes import KINDS, Moments
from grouped_lm.plan import communication
from grouped_lm.plan.communication import Weights
from grouped_lm.plan.fake_step import UNKNOWN_SIZES, averages_per_weight, fake_model, fake_step, with_shape, with_train
from grouped_lm.plan.heads import seconds_per_step, step_tokens
from grouped_lm.plan.launches import kernel_mode
from grouped_lm.system.phases import track

STRATEGIES = ("ddp", "fsdp2")
VOCAB_PARALLEL = "ddp vocab_parallel"
"""DDP with split tables (`train.vocab_parallel`)."""


@dataclasses.dataclass(frozen=True)
class DevicesPlan:
    """Needs of each of W processes in a step of one head, with its part of the batch."""

    head: str
    strategy: str
    processes: int
    peak_bytes: int
    weights_bytes: int
    optimizer_bytes: int
    gradients_bytes: int
    """In DDP's buckets, or in shards."""
    sent_bytes: int
    """By each process in an optimizer step."""
    compute_s: float
    exchange_s: float
    """Time of all communication."""
    exposed_s: float
    """Part of it that computing does not hide."""
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


def ddp_peak_bytes(step: Moments, weights: Weights, averages: float) -> int:
    """Return the peak on each device: (2 + A) P, and the maximum of the activations with the newest gradient.

    The weights, A averages per weight and the buckets live through the whole step. A gradient exists beside its bucket
    until it is copied into it. Gradients of split tables have no bucket and live until the end. The fake step is that
    of one process with its part of the batch.
    """
    gradients = step.live[:, KINDS.index("gradients")]
    made = np.maximum(np.diff(gradients, prepend=gradients[:1]), 0)
    of_rows = np.isin(made, weights.rows)
    kept = np.where(of_rows, made, 0).cumsum() + np.where(of_rows, 0, made)
    return int((1 + averages) * weights.total) + weights.in_buckets + int((activations(step) + kept).max())


def fsdp2_peak_bytes(step: Moments, weights: Weights, processes: int, averages: float) -> int:
    """Return the peak on each device: (1 + A) P / W, and the maximum of two cases.

    Case 1, while blocks compute: the activations, R, the gradients of the rest in full and those of the blocks in
    shards, and some whole blocks. Before the backward pass there are 2 P_b: a block and the buffer that it arrived in.
    In the first block of the backward pass there are 3 P_b: also the next block and gradients. In all others there are
    4 P_b: also the gradients that are still being sent. Case 2, at the end: 3 R (the rest's weights, its gradients and
    the buffer that they are sent from) and the shards of the blocks' gradients. The backward pass makes the gradients
    of the model's end first, then those of the blocks, then those of its beginning. A slow link needs one buffer more.
    """
    gradients = step.live[:, KINDS.index("gradients")]
    of_blocks = np.clip(gradients - weights.behind, 0, weights.blocks)
    held = activations(step) + gradients - of_blocks + of_blocks // processes
    copies = np.select([of_blocks == 0, of_blocks <= weights.largest_block], [2, 3], 4)
    gathered = copies * weights.largest_block
    working = int((held + gathered).max()) + weights.rest
    done = 3 * weights.rest + weights.blocks // processes
    return int((1 + averages) * weights.total) // processes + max(working, done)


def plan_devices(config: Config, processes: int, device: Device, link: Interconnect, tokens: int) -> list[DevicesPlan]:
    """Return the plans of a run on W devices: DDP, FSDP2, and DDP with split tables if `train.vocab_parallel`.

    Raises:
        ConfigError: W processes cannot take equal parts of a batch or of the V rows.
        UNKNOWN_SIZES: the head's sizes depend on the tokens of a batch.
    """
    micro_steps = config.train.grad_accum_steps
    part = with_shape(config, batch=config.train.share(processes))
    plans = []
    for strategy in (*STRATEGIES, *((VOCAB_PARALLEL,) if config.train.vocab_parallel else ())):
        sharded = strategy == "fsdp2"
        own_part = with_train(part, vocab_parallel=strategy == VOCAB_PARALLEL)
        with FakeTensorMode():
            model = fake_model(own_part, processes=processes)
            averages = averages_per_weight(own_part, model)
        if not sharded:  # FSDP2 computes the step of DDP, the strategy before
            step = fake_step(own_part, processes)
        weights = Weights.of(model, processes if sharded else 1)
        own = weights.total // processes if sharded else weights.total
        compute_s = seconds_per_step(own_part, model, own // 4, averages, step.made, device)
        if sharded:
            later = weights.rest // processes if micro_steps > 1 else 0  # gradients of the micro-steps before
            one_step = fake_step(with_train(own_part, grad_accum_steps=1))
            peak = fsdp2_peak_bytes(one_step, weights, processes, averages) + later
            sent = communication.fsdp2_sent_bytes(weights, processes, micro_steps, link)
            exposed_s = communication.fsdp2_exposed_s(compute_s, weights, processes, micro_steps, link)
        else:
            peak, sent = ddp_peak_bytes(step, weights, averages), communication.ddp_sent_bytes(weights, processes)
            states = communication.states_sent_bytes(own_part, model, processes, link)
            exposed_s = communication.ddp_exposed_s(compute_s, sent / link.bytes_per_sec, weights, micro_steps)
            exposed_s, sent = exposed_s + states / link.bytes_per_sec, sent + states
        rate = step_tokens(config) / (compute_s + exposed_s)
        plan = DevicesPlan(
            head=config.head.name,
            strategy=strategy,
            processes=processes,
            peak_bytes=peak,
            weights_bytes=own,
            optimizer_bytes=int(averages * own),
            gradients_bytes=own,
            sent_bytes=sent,
            compute_s=compute_s,
            exchange_s=sent / link.bytes_per_sec,
            exposed_s=exposed_s,
            tokens_per_sec=rate,
            hours=tokens / rate / 3600,
        )
        plans.append(plan)
    return plans


def plan_heads_on_devices(
    config: Config, processes: int, device: Device, link: Interconnect, tokens: int | None = None
) -> list[DevicesPlan]:
    """Return the plans of the dense head and of the config's own head. Without `tokens` the config gives them.

    Raises:
        ConfigError: W processes cannot share the batch, or the head's sizes depend on the tokens.
    """
    heads: list[Any] = [config.head]
    if config.head.name != "dense":
        heads.insert(0, DenseConfig(tied=config.model.embedding == "table"))
    unplanned = f"head={config.head.name} is not planned: its sizes depend on the tokens of a batch or of the text"
    if HEADS[config.head.name].head.sizes_follow_text:
        raise ConfigError(unplanned)
    total = tokens or config.train.max_steps * step_tokens(config)
    try:
        with kernel_mode(device):
            plans = [
                plan_devices(dataclasses.replace(config, head=head), processes, device, link, total)
                for head in track(heads, "planning the heads", len(heads))
            ]
    except UNKNOWN_SIZES as error:
        raise ConfigError(unplanned) from error
    return list(itertools.chain.from_iterable(plans))
