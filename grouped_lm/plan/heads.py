"""Predict memory, largest shapes, FLOPs and speed of a run with every head, without a step.

Letters: B micro_batch_size, T block_size.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch._subclasses.fake_tensor import FakeTensorMode

from grouped_lm.config import Config
from grouped_lm.distributed.vocab_parallel import VocabParallelDenseHead
from grouped_lm.heads import HEADS
from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS
from grouped_lm.measure.devices import Device
from grouped_lm.measure.live_bytes import KINDS, Moments
from grouped_lm.models.lm import LanguageModel, estimate_body_flops_per_token
from grouped_lm.plan.fake_step import (
    UNKNOWN_SIZES,
    Counts,
    averages_per_weight,
    fake_model,
    fake_step,
    fake_steps,
    with_shape,
    with_train,
)
from grouped_lm.plan.launches import count_launches, kernel_mode
from grouped_lm.system.phases import track

MAX_BATCH, MAX_CONTEXT = 2**16, 2**17
"""The search for the largest shapes ends here."""
UTILISATION = 0.5
"""Assumed share of the peak FLOP/s in matrix products; large ones reach more, narrow ones less.

On one CPU thread, runs with D 128 and 3 layers were within 15 % of the plan. Runs with D 64 and 16 attention heads
were 2.5 times (dense) and 6 times (grouped) slower than planned.
"""
WORTH = 1.1
"""A head must be so many times better in memory or in speed to be useful."""


@dataclasses.dataclass(frozen=True)
class HeadPlan:
    """Needs of one head with the body, batch and context of the config."""

    head: str
    peak_bytes: int
    parts: dict[str, int]
    """Bytes at the peak by kind (`live_bytes.KINDS`)."""
    peak_module: str
    largest_micro_batch_size: int
    """At the config's context; 0 if not even one window fits."""
    longest_block_size: int
    """At the config's batch; 0 if not even one token fits."""
    body_flops_per_token: float
    """Forward pass; a training step takes three times as much."""
    head_flops_per_token: float
    tokens_per_sec: float
    hours: float
    head_launches: int
    """Operators and kernels that the loss and its gradients launch on a GPU."""
    flops_ratio: float = 1.0
    """FLOPs with the dense head over those with this one."""
    memory_ratio: float = 1.0
    speed_ratio: float = 1.0

    @property
    def flops_cap(self) -> float:
        """1 + F_head / F_body: the FLOPs over those with a head that costs nothing."""
        return 1 + self.head_flops_per_token / self.body_flops_per_token

    @property
    def head_share(self) -> float:
        """Share of the step's FLOPs that the head has: what no exact kernel for it can remove."""
        return self.head_flops_per_token / (self.body_flops_per_token + self.head_flops_per_token)

    @property
    def helps(self) -> bool:
        """Whether memory or speed is at least `WORTH` times better than with the dense head."""
        return max(self.memory_ratio, self.speed_ratio) >= WORTH


def interpolate(steps: dict[int, Moments], x: int) -> np.ndarray | None:
    """Return the (moments, kinds) bytes at `x` by the polynomial through the steps; None if the modules differ.

    Sizes are polynomials of B (degree 1) and T (degree 1, or 2 with attention scores or masks). So a few steps give
    every x exactly, from `least_batch` or `least_context` on. The peak is the maximum over moments, so it is no
    polynomial itself.
    """
    first, *others = steps.values()
    if any(step.modules != first.modules for step in others):
        return None
    live = np.zeros(first.live.shape)
    for at, step in steps.items():
        weight = math.prod((x - other) / (at - other) for other in steps if other != at)
        live += weight * step.live
    return live


def largest(fits: Callable[[int], bool], high: int) -> int:
    """Return the largest x in [0, high] that fits, by bisection; 0 always fits."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def least_batch(config: Config) -> int:
    """Return the smallest B from which sizes are polynomials at the config's T; one sequence has another layout."""
    return max(2, math.ceil(least_states(config) / config.model.block_size))


def least_context(config: Config) -> int:
    """Return the smallest T from which sizes are polynomials at the config's B."""
    return max(2, math.ceil(least_states(config) / config.train.micro_batch_size))


def least_states(config: Config) -> int:
    """Return the B T that fill one chunk of a head's logits."""
    return max(DEFAULT_CHUNK_ROWS, getattr(config.head, "chunk_rows", None) or 0)


def peak_function(steps: dict[int, Moments], least: int, step_at: Callable[[int], Moments]) -> Callable[[int], float]:
    """Return the function x -> peak bytes: interpolated from `least` on if possible, else from `step_at(x)`."""

    def peak(x: int) -> float:
        live = interpolate(steps, x) if x >= least else None
        return float((step_at(x).live if live is None else live).sum(1).max())

    return peak


def measure_points(config: Config) -> tuple[Moments, dict[int, Moments], dict[int, Moments]]:
    """Return the config's own step, and the steps to interpolate by B at its T and by T at its B.

    If GPT-Neo's window is longer than the config's T, shorter contexts get masks in the plan that they do not need.
    """
    batch, context = config.train.micro_batch_size, config.model.block_size
    start = max(batch, least_batch(config))
    batches = sorted({batch, start, 2 * start})
    by_batch = dict(zip(batches, fake_steps(config, batches), strict=True))
    step = by_batch[batch]
    if batch < start:
        del by_batch[batch]
    cut = config.model.body == "gpt_neo" and context <= config.model.window_size  # a longer context needs a mask
    # masks, and attention without a kernel, need T x T numbers
    square = config.model.body == "gpt_neo" or config.model.dropout > 0 or config.model.attention == "unfused"
    start = max(2 * config.model.window_size if cut else context, least_context(config))
    lengths = range(start, start * (4 if square else 3), start)
    by_context = {x: step if x == context else fake_step(with_shape(config, context=x)) for x in lengths}
    return step, by_batch, by_context


def seconds_per_step(
    config: Config, model: LanguageModel, n_params: int, averages: float, made: int, device: Device
) -> float:
    """Return the seconds of an optimizer step.

    Matrix products take `UTILISATION` of the peak FLOP/s. Every new tensor, `made` bytes in a fake step, is written and
    read once at full bandwidth. The fp32 update of `n_params` weights reads weight, gradient and averages, and writes
    all but the gradient.
    """
    train = config.train
    body, head = estimate_body_flops_per_token(config.model, config.model.block_size), model.head.flops_per_token()
    again = body / 3 if config.model.activation_checkpointing else 0.0  # one more forward pass
    again += head / 3 if isinstance(model.head, VocabParallelDenseHead) else 0.0
    compute = 3 * (body + again + head) * step_tokens(config) / (UTILISATION * device.flops_per_sec(train.dtype))
    traffic = 2 * made * train.grad_accum_steps / min(2, train.grad_accum_steps) + 4 * (3 + 2 * averages) * n_params
    return compute + traffic / device.bytes_per_sec


def step_tokens(config: Config) -> int:
    """Return the tokens of an optimizer step."""
    return config.train.micro_batch_size * config.model.block_size * config.train.grad_accum_steps


def estimate_speed(config: Config, step: Moments, device: Device, counts: Counts = None) -> tuple[float, float]:
    """Return the tokens per second of a run, and the head's FLOPs per token and forward pass.

    `step` is the fake step of the config; both know the same `counts`.
    """
    with FakeTensorMode():
        model = fake_model(config, counts=counts)
        averages = averages_per_weight(config, model)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    seconds = seconds_per_step(config, model, n_params, averages, step.made, device)
    return step_tokens(config) / seconds, model.head.flops_per_token()


def plan_head(config: Config, memory_bytes: int, device: Device, tokens: int) -> HeadPlan:
    """Return the plan of one head, without the ratios to the dense head."""
    with kernel_mode(device):
        return _plan_head(config, memory_bytes, device, tokens)


def _plan_head(config: Config, memory_bytes: int, device: Device, tokens: int) -> HeadPlan:
    step, by_batch, by_context = measure_points(config)
    batch_peak = peak_function(by_batch, least_batch(config), lambda x: fake_step(with_shape(config, batch=x)))
    context_peak = peak_function(by_context, least_context(config), lambda x: fake_step(with_shape(config, context=x)))
    rate, head = estimate_speed(config, step, device)
    at = int(step.live.sum(1).argmax())
    return HeadPlan(
        head=config.head.name,
        peak_bytes=int(step.live[at].sum()),
        parts={kind: int(size) for kind, size in zip(KINDS, step.live[at], strict=True)},
        peak_module=step.modules[at] or "optimizer",
        largest_micro_batch_size=largest(lambda x: batch_peak(x) <= memory_bytes, MAX_BATCH),
        longest_block_size=largest(lambda x: context_peak(x) <= memory_bytes, MAX_CONTEXT),
        body_flops_per_token=estimate_body_flops_per_token(config.model, config.model.block_size),
        head_flops_per_token=head,
        tokens_per_sec=rate,
        hours=tokens / rate / 3600,
        head_launches=count_launches(config, device),
    )


def plan_heads(
    config: Config, memory_bytes: int, device: Device, tokens: int | None = None
) -> tuple[list[HeadPlan], list[str]]:
    """Return the plans of all heads, the dense one first, and the names of heads without a plan.

    Those have sizes that depend on the tokens of a batch or of the text. The config's own head has its settings, the
    others have their defaults. `memory_bytes` is for live tensors. Without `tokens`, the length of the whole training,
    the config gives it.
    """
    config = with_train(config, vocab_parallel=False)  # one process has whole tables
    total = tokens or config.train.max_steps * step_tokens(config)
    heads: dict[str, Any] = {name: schema() for name, (schema, _) in HEADS.items()}
    if config.model.embedding != "table":
        heads |= {name: dataclasses.replace(head, tied=False) for name, head in heads.items() if hasattr(head, "tied")}
    heads[config.head.name] = config.head
    plans, unplanned = [], []
    for name, head in track(heads.items(), "planning the heads", len(heads)):
        if HEADS[name].head.sizes_follow_text:
            unplanned.append(name)
            continue
        try:
            plans.append(plan_head(dataclasses.replace(config, head=head), memory_bytes, device, total))
        except UNKNOWN_SIZES:
            unplanned.append(name)
    dense, flops = plans[0], [plan.body_flops_per_token + plan.head_flops_per_token for plan in plans]
    compared = [
        dataclasses.replace(
            plan,
            flops_ratio=flops[0] / own_flops,
            memory_ratio=dense.peak_bytes / plan.peak_bytes,
            speed_ratio=plan.tokens_per_sec / dense.tokens_per_sec,
        )
        for plan, own_flops in zip(plans, flops, strict=True)
    ]
    return compared, unplanned
