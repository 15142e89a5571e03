"""Speed, memory and network traffic of a training run."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from grouped_lm.config import Config
from grouped_lm.distributed.parallel import ParallelModel
from grouped_lm.distributed.traffic import StepTraffic
from grouped_lm.measure.memory import StepMemory, measure_head_peak_gib
from grouped_lm.measure.throughput import UNTIMED_STEPS, Throughput, measure_gemm_flops_per_sec
from grouped_lm.models.lm import estimate_body_flops_per_token


class Meters:
    """The meters of one run.

    Args:
        config: the run.
        model: on `device`.
        optimizer: of the model's parameters.
        device: the model's.
        step: steps done before the first measured one.
    """

    def __init__(
        self,
        config: Config,
        model: ParallelModel,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        step: int,
    ) -> None:
        train, block_size, processes = config.train, config.model.block_size, model.process_group.size
        head = model.model.head
        self.step_tokens = train.micro_batch_size * train.grad_accum_steps * block_size
        forward_flops = estimate_body_flops_per_token(config.model, block_size) + head.flops_per_token()
        self.peak_flops_per_sec = measure_gemm_flops_per_sec(device, getattr(torch, train.dtype))
        self._mfu_per_rate = 3.0 * forward_flops / self.peak_flops_per_sec / processes  # backward: twice the forward
        self.head_peak_gib: float | None = None  # unknown where the head is in shards: these are not whole here
        if not model.shards:
            n_tokens = train.share(processes) * block_size
            self.head_peak_gib = measure_head_peak_gib(head, n_tokens, config.model.n_embd, head.vocab_size, device)
        self.memory = StepMemory(device, model.model, optimizer, held_bytes=model.held_bytes())
        self.traffic, self._throughput = StepTraffic(), Throughput()
        self._device, self._first_step = device, step

    @contextlib.contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Measure the enclosed optimizer step. `step` is the number of steps done before it."""
        steps_before = step - self._first_step
        if not self._throughput.running and steps_before >= UNTIMED_STEPS:
            self._throughput.start(step, self._device)
        with self.memory.watch(steps_before), self.traffic.watch(steps_before):
            yield

    def restart(self, step: int) -> None:
        """Forget the running measurement after a rollback to `step`."""
        self._throughput.drop()
        self._first_step = step

    def stop(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """End the running measurement after `step` steps.

        Returns:
            The speed of the steps since the last call, and a row of medians and memory peaks so far. The row has only
            the keys that are known by now.
        """
        rate = self._throughput.stop(step, self.step_tokens, self._device)
        row = {} if rate is None else self.speed(self._throughput.tokens_per_sec())
        row |= {key: value for key, value in self.memory.read().items() if value is not None}
        return self.speed(rate), row

    def speed(self, rate: float | None) -> dict[str, float | None]:
        """Return the speed columns of a rate in tokens per second (None where it is not known)."""
        return {
            "throughput/tokens_per_sec": rate,
            "throughput/mfu": rate and rate * self._mfu_per_rate,
            "time/step_ms": rate and 1000 * self.step_tokens / rate,
        }
