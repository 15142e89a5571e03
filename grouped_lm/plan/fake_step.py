"""One training step on shapes alone: the operators of the loop in `train`, none of them run.

Its bytes agree with the allocator events of a real step on a CPU within 1 % (`tests/test_plan.py`). Not seen: what a
kernel written in C++ allocates inside, such as the few KiB per thread of CPU attention. On a GPU come on top of live
tensors: the context, the libraries' workspaces, rounding to 512 bytes, fragmentation and larger chunks of logits
(`chunked.DEVICE_CHUNK_ROWS`); that its attention kernels save about what the CPU's save is assumed, not measured.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from grouped_lm.config import Config, GroupingConfig
from grouped_lm.distributed.parallel import count_targets
from grouped_lm.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from grouped_lm.distributed.vocab_parallel import split_vocabulary
from grouped_lm.heads.base import HeadLoss
from grouped_lm.measure.live_bytes import LiveBytes, Moments
from grouped_lm.models.build import build_lm
from grouped_lm.models.gpt_neo import forget_masks
from grouped_lm.models.lm import LanguageModel
from grouped_lm.optim.adamw import build_optimizer
from grouped_lm.optim.step_metrics import StepMetricsBuffer
from grouped_lm.system.precision import autocast


def fake_model(config: Config, vocab_size: int | None = None, processes: int = 1) -> LanguageModel:
    """Build the model of shapes alone, in training mode; which token is in which group changes no size.

    Of several `processes` it is that of the first, whose tables may be cut: see `train.vocab_parallel`.
    """
    model = build_lm(dataclasses.replace(config, grouping=GroupingConfig()), vocab_size=vocab_size).train()
    if config.train.vocab_parallel and processes > 1:
        split_vocabulary(model, ProcessGroup(size=processes), None)
    return model


@contextmanager
def faking() -> Iterator[None]:
    """Make tensors inside have shapes alone, and leave no trace of them behind."""
    forget_masks()
    try:
        with FakeTensorMode():
            yield
    finally:
        forget_masks()  # a fake mask must not reach a real step


def fake_steps(
    config: Config, batches: Sequence[int], vocab_size: int | None = None, processes: int = 1
) -> list[Moments]:
    """Return what lives during an optimizer step of the loop in `train`, for each B, with the state of a step before.

    Of `grad_accum_steps` micro-steps two are run: from the second on, gradients live beside the activations. V is the
    tokenizer's where none is given. B is that of one process of several. The text is not known: where it has at most
    half of all tokens, the default head needs less (`heads/table_rows.py`).
    """
    with faking():
        model = fake_model(config, vocab_size, processes)
        every_row = dataclasses.replace(config.optim, sparse_rows=False)  # which ones a batch touches is not known
        optimizer = build_optimizer(every_row, model)
        make_state(model, optimizer)
        shapes = [(batch, config.model.block_size) for batch in batches]
        return [watch_step(config, model, optimizer, partial(_zeros, shape)) for shape in shapes]


def fake_passes(config: Config, batches: Sequence[int]) -> list[Moments]:
    """Return what lives during a forward pass without gradients, as in evaluation, for each B."""
    with faking(), torch.no_grad():
        model = fake_model(config).eval()
        return [watch_pass(model, partial(_zeros, (batch, config.model.block_size))) for batch in batches]


def _zeros(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)


def watch_pass(model: LanguageModel, make_batch: Callable[[], tuple[Tensor, Tensor]]) -> Moments:
    """Return what lives during a forward pass."""
    live = LiveBytes(model)
    live.hold([*model.parameters(), *model.buffers()], "weights")
    with live.watching():
        model(*make_batch())
    forget_masks()
    return live.moments()


def make_state(model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer the state that it has after a first step."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def fake_step(config: Config, processes: int = 1, vocab_size: int | None = None) -> Moments:
    """Return what lives during a step at the config's own B; see `fake_steps`."""
    return fake_steps(config, [config.train.micro_batch_size], vocab_size, processes)[0]


def watch_step(
    config: Config,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    make_batch: Callable[[], tuple[Tensor, Tensor]],
) -> Moments:
    """Return what lives during a step of the loop in `train`, fake or real.

    Args:
        config: dtype, accumulation and clipping.
        model: its gradients None.
        optimizer: with its state.
        make_batch: gives (B, T) ids and targets.
    """
    parameters = list(model.parameters())
    live = LiveBytes(model)
    live.hold([*parameters, *model.buffers()], "weights")
    live.hold((v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)), "optimizer")
    with live.watching():
        losses: list[HeadLoss] = []
        for _ in range(min(2, config.train.grad_accum_steps)):
            input_ids, targets = make_batch()
            with autocast(torch.device("cpu"), config.train.dtype):
                losses.append(model(input_ids, targets, reduction="sum").over(count_targets(targets, SINGLE_PROCESS)))
            (losses[-1].objective() / config.train.grad_accum_steps).backward()
            live.hold((p.grad for p in parameters if p.grad is not None), "gradients")
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.grad_clip or math.inf)
        StepMetricsBuffer(torch.device("cpu")).add(optimizer, losses, grad_norm, 0, config.optim.lr)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    forget_masks()  # the next batch makes its own, as this one did
    return live.moments()


def with_shape(config: Config, batch: int | None = None, context: int | None = None) -> Config:
    """Return the config of one process with another B or T."""
    made = with_train(config, micro_batch_size=batch or config.train.micro_batch_size, devices=1, nodes=1)
    model = dataclasses.replace(config.model, block_size=context or config.model.block_size)
    return dataclasses.replace(made, model=model)


def with_train(config: Config, **fields: Any) -> Config:
    """Return the config with other values of `train`."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))
