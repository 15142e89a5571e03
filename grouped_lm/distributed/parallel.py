"""One model on several devices: whole on each (torch's DDP) or in shards (torch's FSDP2).

Under DDP, `vocab_parallel` can cut the tables that have a row per token.

Source: Li et al. 2020 (arXiv 2006.15704) and Zhao et al. 2023 (arXiv 2304.11277), as `DistributedDataParallel` and
`fully_shard`. Gradients are summed over the processes, not averaged: the loss of each process is already divided by the
number of targets in all processes.

Letters: B windows of one process, T tokens of a window.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from grouped_lm.config import IGNORE_INDEX, TrainConfig
from grouped_lm.distributed.process_group import ProcessGroup, full_tensor, is_sharded
from grouped_lm.distributed.vocab_parallel import split_vocabulary
from grouped_lm.heads.losses.functional import HeadLoss
from grouped_lm.models.lm import LanguageModel


@dataclass
class ParallelModel:
    """A model with the means to train it in several processes."""

    model: LanguageModel
    """The module itself, for names, weights and evaluation. Under FSDP2 its parameters are shards."""
    process_group: ProcessGroup
    forward: Callable[..., HeadLoss]
    """The forward pass of training."""
    ddp: DistributedDataParallel | None = None
    shards: tuple[Any, ...] = ()
    """Modules that FSDP2 gathers one after another. The last one is the whole model."""

    def micro_step(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context of a micro-step. DDP sums gradients only in the last one of a step, FSDP2 in each."""
        return contextlib.nullcontext() if self.ddp is None or last else self.ddp.no_sync()

    def mean_loss(self, input_ids: Tensor, targets: Tensor, counted: Tensor) -> HeadLoss:
        """Return this process's part, (B, T), of the mean loss over the `counted` targets of all processes."""
        return self.forward(input_ids, targets, reduction="sum").over(counted)

    def add_up(self, losses: list[HeadLoss]) -> list[HeadLoss]:
        """Return the losses, with every part summed over the processes and without gradients."""
        if self.process_group.size == 1:
            return losses
        parts = [[part for part in (one.nll, one.group_nll, one.token_nll) if part is not None] for one in losses]
        sums = self.process_group.sum(torch.stack([part.detach().double() for row in parts for part in row]))
        return [HeadLoss(*row) for row in sums.view(len(losses), -1).unbind()]

    def held_bytes(self) -> int:
        """Return the bytes of DDP's buckets. They hold the gradients during a step and stay between steps."""
        return sum(4 * p.numel() for p in self.model.parameters() if not is_sharded(p)) if self.ddp is not None else 0

    def reshard(self) -> None:
        """Free the full weights that an evaluation gathered."""
        for module in self.shards:
            module.reshard()


def count_targets(targets: Tensor, process_group: ProcessGroup) -> Tensor:
    """Return the number of targets in all processes that are not ignored, (), at least 1."""
    return process_group.sum((targets != IGNORE_INDEX).sum()).clamp_min(1)


def parallelize(
    model: LanguageModel, cfg: TrainConfig, process_group: ProcessGroup, device: torch.device
) -> ParallelModel:
    """Move `model` to the device of this process, and wrap it for several processes and `torch.compile`.

    The model is on the CPU, the same in every process. FSDP2 moves and cuts it block by block.
    """
    parallel = ParallelModel(model, process_group, model)
    if process_group.size == 1:
        model.to(device)
    elif cfg.strategy == "ddp":
        if cfg.vocab_parallel:
            split_vocabulary(model, process_group, device)
            cut = [name for name, p in model.named_parameters(remove_duplicate=False) if is_sharded(p)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, cut)
        model.to(device)
        parallel.ddp = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            forward_sync_buffers=False,  # groupings, the same everywhere
            gradient_as_bucket_view=True,
        )
        parallel.ddp.register_comm_hook(None, sum_bucket)
        parallel.forward = parallel.ddp
    else:
        parallel.shards = shard(model, device)
    if cfg.compile:
        parallel.forward = torch.compile(parallel.forward)
    return parallel


def sum_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum a bucket of gradients over the processes."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None  # it is asynchronous
    return work.get_future().then(lambda done: done.value()[0])


def shard(model: LanguageModel, device: torch.device) -> tuple[Any, ...]:
    """Cut every block, then all the rest, into one part for each process, and return the cut modules.

    A table that body and head share is in the rest. The rest is gathered before the body's first layer, and kept until
    the end of the backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.utils import _pytree as pytree

    if HeadLoss not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(HeadLoss)  # FSDP2 looks for gradients to come in what a forward returns
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.body.h:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    cut = tuple(module for module in model.modules() if isinstance(module, FSDPModule))
    for module in cut:
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return cut


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradient down to `max_norm` (0 does not scale), and return its norm over all shards before that."""
    parameters = list(model.parameters())
    kinds = [[p for p in parameters if is_sharded(p) == sharded] for sharded in (False, True)]  # torch cannot mix them
    grads = [[p.grad for p in kind if p.grad is not None] for kind in kinds]
    norms = [full_tensor(torch.nn.utils.get_total_norm(kind)) for kind in grads if kind]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        torch.nn.utils.clip_grads_with_norm_(kind, max_norm or math.inf, norm)
    return norm
