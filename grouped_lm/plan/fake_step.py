"""One training step on tensors without data: the step of `optim.training_step`, of which nothing is computed.

Its bytes agree with the allocator events of a real step on a CPU within 1 % (`tests/integration/test_plan.py`).
It does not see what a C++ kernel allocates inside, such as a few KiB per thread of CPU attention. A GPU needs more than
its live tensors: context, workspaces of libraries, rounding to 512 bytes, fragmentation and larger chunks of logits
(`chunked.DEVICE_CHUNK_ROWS`). That its attention kernels save about as much as the CPU's is assumed, not measured.

Letters: B windows, T tokens of a window, V vocabulary.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
    unset_fake_temporarily,
)

from grouped_lm.config import Config, GroupingConfig
from grouped_lm.distributed.parallel import ParallelModel
from grouped_lm.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from grouped_lm.distributed.vocab_parallel import split_vocabulary
from grouped_lm.heads import HEADS, GroupedTokens
from grouped_lm.heads.losses.functional import HeadLoss
from grouped_lm.measure.live_bytes import LiveBytes, Moments
from grouped_lm.models.gpt_neo import forget_masks
from grouped_lm.models.lm import LanguageModel, build_lm
from grouped_lm.optim import build_optimizer
from grouped_lm.optim.training_step import TrainingStep

Counts = np.ndarray | None
"""Occurrences of the tokens in a text, where it is known."""
UNKNOWN_SIZES = DataDependentOutputException, DynamicOutputShapeException
"""Raised by a fake step of a head whose sizes depend on the tokens of a batch."""


def fake_model(
    config: Config, vocab_size: int | None = None, processes: int = 1, counts: Counts = None
) -> LanguageModel:
    """Build the model without data, in training mode. The grouping changes no size.

    Of several `processes` it is the model of the first one. With `train.vocab_parallel` its tables are cut. The (V,)
    `counts` decide the sizes of heads whose sizes follow the text: such a model is built with data first.
    """
    config = dataclasses.replace(config, grouping=GroupingConfig())
    if counts is not None and HEADS[config.head.name].head.sizes_follow_text:
        mode = detect_fake_mode()
        assert mode is not None
        with unset_fake_temporarily():
            real = build_lm(config, lambda: counts).train()
            with FakeCopyMode(mode):
                return copy.deepcopy(real)
    model = build_lm(config, vocab_size=vocab_size).train()
    if config.train.vocab_parallel and processes > 1:
        split_vocabulary(model, ProcessGroup(size=processes), None)
    if isinstance(model.head, GroupedTokens):
        model.head.token_index()  # where kernels are part of the plan, it is there before the first step
    return model


@contextmanager
def faking() -> Iterator[None]:
    """Make tensors inside have shapes but no data, and leave none of them behind."""
    forget_masks()
    try:
        with FakeTensorMode():
            yield
    finally:
        forget_masks()  # a fake mask must not reach a real step


def fake_steps(
    config: Config,
    batches: Sequence[int],
    vocab_size: int | None = None,
    processes: int = 1,
    counts: Counts = None,
) -> list[Moments]:
    """Return the live bytes during one optimizer step for each B of one process. The optimizer has its state already.

    Of `grad_accum_steps` micro-steps two are run: from the second on, gradients live beside the activations. The text
    is not known: if it has at most half of all tokens, the default head needs less (`heads/losses/two_steps.py`).
    Without `vocab_size` the tokenizer gives V. The `counts` are those of `fake_model`.
    """
    with faking():
        model = fake_model(config, vocab_size, processes, counts)
        optimizer = fake_optimizer(config, model)
        shapes = [(batch, config.model.block_size) for batch in batches]
        return [watch_step(config, model, optimizer, partial(_zeros, shape)) for shape in shapes]


def fake_optimizer(config: Config, model: LanguageModel) -> torch.optim.Optimizer:
    """Return the config's optimizer with its state, without sparse rows: which rows a batch has is not known."""
    optim: Any = config.optim
    if getattr(optim, "sparse_rows", False):
        optim = dataclasses.replace(optim, sparse_rows=False)
    optimizer = build_optimizer(optim, model)
    make_state(model, optimizer)
    return optimizer


def fake_passes(config: Config, batches: Sequence[int]) -> list[Moments]:
    """Return the live bytes during a forward pass without gradients, as in evaluation, for each B."""
    moments = []
    with faking(), torch.no_grad():
        model = fake_model(config).eval()
        for batch in batches:
            live = LiveBytes(model)
            live.hold([*model.parameters(), *model.buffers()], "weights")
            with live.watching():
                model(*_zeros((batch, config.model.block_size)))
            forget_masks()
            moments.append(live.moments())
    return moments


def _zeros(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)


def make_state(model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer the state that it has after a first step."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def averages_per_weight(config: Config, model: LanguageModel) -> float:
    """Return the mean number of values that the optimizer stores per weight: 2 for AdamW, 1 for momentum."""
    optimizer = fake_optimizer(config, model)
    state = [(p.shape, value) for p, values in optimizer.state.items() for value in values.values()]
    stored = sum(value.numel() for shape, value in state if value.shape == shape)
    return stored / sum(parameter.numel() for parameter in model.parameters())


def fake_step(config: Config, processes: int = 1, vocab_size: int | None = None, counts: Counts = None) -> Moments:
    """Return the live bytes during a step with the config's own B (`fake_steps`)."""
    return fake_steps(config, [config.train.micro_batch_size], vocab_size, processes, counts)[0]


def watch_step(
    config: Config,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    make_batch: Callable[[], tuple[Tensor, Tensor]],
) -> Moments:
    """Return the live bytes during one training step on a CPU, with or without data.

    The model has no gradients yet, the optimizer has its state, and `make_batch` returns (B, T) ids and targets.
    """
    parameters = list(model.parameters())
    step = TrainingStep(config, ParallelModel(model, SINGLE_PROCESS, model), optimizer, torch.device("cpu"))
    live = LiveBytes(model)
    live.hold([*parameters, *model.buffers()], "weights")
    live.hold((v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)), "optimizer")
    with live.watching():
        losses: list[HeadLoss] = []
        for micro_step in range(min(2, config.train.grad_accum_steps)):
            is_last = micro_step == config.train.grad_accum_steps - 1
            losses.append(step.forward_backward(*make_batch(), is_last))
            live.hold((p.grad for p in parameters if p.grad is not None), "gradients")
        step.update(losses, step=0, lr=config.optim.lr)
    forget_masks()  # the next batch makes its own, as this one did
    return live.moments()


def with_shape(config: Config, batch: int | None = None, context: int | None = None) -> Config:
    """Return the config of one process with another B or T."""
    single = with_train(config, micro_batch_size=batch or config.train.micro_batch_size, devices=1, nodes=1)
    model = dataclasses.replace(config.model, block_size=context or config.model.block_size)
    return dataclasses.replace(single, model=model)


def with_train(config: Config, **fields: Any) -> Config:
    """Return the config with other values of `train`."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))
