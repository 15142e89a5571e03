"""One training step on shapes alone: the operators of the loop in `train`, none of them run.

Its bytes agree with the allocator events of a real step on a CPU within 1 % (`tests/test_plan.py`). Not seen: what a
kernel written in C++ allocates inside, such as the few KiB per thread of CPU attention. On a GPU come on top of live
tensors: the context, the libraries' workspaces, rounding to 512 bytes and fragmentation; that its attention kernels
save about what the CPU's save is assumed, not measured.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from grouped_lm.config import Config, GroupingConfig
from grouped_lm.heads.base import HeadLoss
from grouped_lm.live_bytes import LiveBytes, Moments
from grouped_lm.models.build import build_lm
from grouped_lm.models.gpt_neo import forget_masks
from grouped_lm.models.lm import LanguageModel
from grouped_lm.optim import build_optimizer
from grouped_lm.scoring import autocast


def fake_model(config: Config) -> LanguageModel:
    """Build the model of shapes alone, in training mode; which token is in which group changes no size."""
    return build_lm(dataclasses.replace(config, grouping=GroupingConfig())).train()


def fake_steps(config: Config, batches: Sequence[int]) -> list[Moments]:
    """Return what lives during an optimizer step of the loop in `train`, for each B, with the state of a step before.

    Of `grad_accum_steps` micro-steps two are run: from the second on, gradients live beside the activations.
    """
    forget_masks()
    try:
        with FakeTensorMode():
            model = fake_model(config)
            every_row = dataclasses.replace(config.optim, sparse_rows=False)  # which ones a batch touches is not known
            optimizer = build_optimizer(every_row, model)
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return [_fake_step(config, model, optimizer, batch) for batch in batches]
    finally:
        forget_masks()  # a fake mask must not reach a real step


def fake_step(config: Config) -> Moments:
    """Return what lives during a step at the config's own B; see `fake_steps`."""
    return fake_steps(config, [config.train.micro_batch_size])[0]


def _fake_step(config: Config, model: LanguageModel, optimizer: torch.optim.Optimizer, batch: int) -> Moments:
    parameters, shape = list(model.parameters()), (batch, config.model.block_size)
    live = LiveBytes(model)
    live.hold([*parameters, *model.buffers()], "weights")
    live.hold((v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)), "optimizer")
    with live.watching():
        losses: list[HeadLoss] = []
        for _ in range(min(2, config.train.grad_accum_steps)):
            input_ids, targets = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
            with autocast(torch.device("cpu"), config.train.dtype):
                losses.append(model(input_ids, targets))
            (losses[-1].objective() / config.train.grad_accum_steps).backward()
            live.hold((p.grad for p in parameters if p.grad is not None), "gradients")
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    forget_masks()  # the next batch makes its own, as this one did
    return live.moments()


def with_shape(config: Config, batch: int | None = None, context: int | None = None) -> Config:
    """Return the config with another B or T."""
    train = dataclasses.replace(config.train, micro_batch_size=batch or config.train.micro_batch_size)
    model = dataclasses.replace(config.model, block_size=context or config.model.block_size)
    return dataclasses.replace(config, train=train, model=model)
