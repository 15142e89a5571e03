"""Speed, memory and network traffic of a training run."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grouped_lm.config import Config
from grouped_lm.distributed.parallel import ParallelModel
from grouped_lm.measure.memory import StepMemory, measure_head_peak_gib
from grouped_lm.measure.throughput import UNTIMED_STEPS, Throughput, measure_gemm_flops_per_sec
from grouped_lm.models.lm import estimate_body_flops_per_token

WATCHED_STEP = 3
"""Steps before the one whose traffic is counted: the first steps set up connections."""
BYTES_SENT, BYTES_RETRANS = 200, 208
"""Offsets of two 8-byte counters in Linux's `struct tcp_info` (include/uapi/linux/tcp.h)."""


def sent_bytes() -> int | None:
    """Return the bytes that this process has sent over its open TCP connections, or None where Linux does not count.

    They include all of gloo's traffic. NCCL uses other ways too, between GPUs of one machine for example.
    """
    if not Path("/proc/self/fd").is_dir():
        return None
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError, struct.error):
            if link.readlink().name.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(link.name))) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6):
                        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RETRANS + 8)
                        sent, sent_again = struct.unpack_from("=QQ", info, BYTES_SENT)
                        total += sent - sent_again
    return total


class Meters:
    """The meters of one run. Call `start` before the first step."""

    def __init__(self, config: Config, model: ParallelModel, device: torch.device, tokens: np.ndarray) -> None:
        """Measure the processor's speed and the memory of the head alone, with the first of the training tokens."""
        train, block_size, processes = config.train, config.model.block_size, model.process_group.size
        head = model.model.head
        self.step_tokens = train.micro_batch_size * train.grad_accum_steps * block_size
        forward_flops = estimate_body_flops_per_token(config.model, block_size) + head.flops_per_token()
        self.peak_flops_per_sec = measure_gemm_flops_per_sec(device, getattr(torch, train.dtype))
        self._mfu_per_rate = 3.0 * forward_flops / self.peak_flops_per_sec / processes  # backward: twice the forward
        self.head_peak_gib: float | None = None  # unknown where the head is in shards: these are not whole here
        if not model.shards:
            n_tokens = train.share(processes) * block_size
            targets = torch.from_numpy(np.resize(tokens[:n_tokens], n_tokens).astype(np.int64)).to(device)
            sizes = n_tokens, config.model.n_embd, head.vocab_size
            self.head_peak_gib = measure_head_peak_gib(head, *sizes, device, targets)
        self._throughput = Throughput()
        self.sent_bytes: int | None = None
        """Bytes that one step sends over the network. None before it is measured, and where Linux does not count."""
        self._device, self._model = device, model

    def start(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Measure the steps after the first `step` ones."""
        self.memory = StepMemory(self._device, self._model.model, optimizer, held_bytes=self._model.held_bytes())
        self._first_step = step

    @contextlib.contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Measure the enclosed optimizer step. `step` is the number of steps done before it."""
        steps_before = step - self._first_step
        if not self._throughput.running and steps_before >= UNTIMED_STEPS:
            self._throughput.start(step, self._device)
        sent_before = sent_bytes() if steps_before == WATCHED_STEP else None
        with self.memory.watch(steps_before):
            yield
        if sent_before is not None and (sent := sent_bytes()) is not None:
            self.sent_bytes = sent - sent_before

    def restart(self, step: int) -> None:
        """Forget the running measurement after a rollback to `step`."""
        self._throughput.drop()
        self._first_step = step

    def stop(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """End the running measurement. Return the speed since the last call, and the known medians and memory peaks."""
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
