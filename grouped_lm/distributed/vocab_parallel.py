"""Vocabulary parallelism: each of W processes has V/W rows of the token tables, with gradients and optimizer state.

The processes exchange hidden states, not tables. Embedding: every process looks up the tokens of all processes that are
among its rows, and the sums go back to the process that asked. Full softmax: every process computes the logits of its
rows for the states of all. Then maxima, sums of exponentials and the targets' logits are combined (Megatron-LM: Shoeybi
et al. 2019, arXiv 1909.08053, section 3). So the gradient of a row is complete where the row is.

Letters: N tokens of one process, W processes, M = N W, D width, V vocabulary, C = ceil(V/W) rows of one process (the
last one may have fewer).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives  # derivatives of the operators in COLLECTIVES
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.distributed.process_group import ProcessGroup, full_tensor, local_tensor
from grouped_lm.errors import ConfigError
from grouped_lm.heads.dense import DenseHead
from grouped_lm.heads.losses.chunked import default_chunk_rows
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32, exact_dtype, reduce_nll, working_dtype
from grouped_lm.heads.regularised import RegularisedHead
from grouped_lm.models.lm import LanguageModel

COLLECTIVES: Any = torch.ops._c10d_functional
"""Torch's functional collectives. They have derivatives, and they run on tensors without data, as a plan needs."""


@dataclass(frozen=True)
class VocabShard:
    """The rows of V that one of W processes has."""

    vocab_size: int
    rank: int
    processes: int
    group: str = ""
    """Torch's name of the process group."""

    @classmethod
    def of(cls, vocab_size: int, process_group: ProcessGroup) -> "VocabShard":
        """Return the rows of this process. Raise a ConfigError if V is so small that a process would have none."""
        group = dist.group.WORLD
        shard = cls(vocab_size, process_group.rank, process_group.size, "" if group is None else group.group_name)
        if shard.max_rows * (process_group.size - 1) >= vocab_size:
            raise ConfigError(
                f"train.vocab_parallel=true gives each of {process_group.size} processes {shard.max_rows} of "
                f"{vocab_size} tokens, and the last ones none: leave it out"
            )
        return shard

    @property
    def max_rows(self) -> int:
        """C, the number of rows of every process. The last one may have fewer."""
        return -(-self.vocab_size // self.processes)

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return for (M,) ids whether they are among these rows, and their position there (0 for all others)."""
        first = self.rank * self.max_rows
        inside = (ids >= first) & (ids < min(first + self.max_rows, self.vocab_size))
        return inside, (ids - first).masked_fill(~inside, 0)

    def gather(self, part: Tensor) -> Tensor:
        """Return the (N, ...) of all processes as (M, ...). The derivative is `sum_scattered`."""
        gathered = COLLECTIVES.all_gather_into_tensor(part.contiguous(), self.processes, self.group)
        return COLLECTIVES.wait_tensor(gathered)

    def sum_scattered(self, parts: Tensor) -> Tensor:
        """Return this process's (N, ...) of the sum of (M, ...) over all processes. The derivative is `gather`."""
        summed = COLLECTIVES.reduce_scatter_tensor(parts.contiguous(), "sum", self.processes, self.group)
        return COLLECTIVES.wait_tensor(summed)

    def reduce(self, values: Tensor, how: str) -> Tensor:
        """Return the "sum" or "max" over all processes."""
        return COLLECTIVES.wait_tensor(COLLECTIVES.all_reduce(values, how, self.group))


class VocabParallelEmbedding(nn.Module):
    """`nn.Embedding` of (V, D) whose rows are shared out over the processes. `weight` is a shard, or (C, D)."""

    def __init__(self, weight: nn.Parameter, shard: VocabShard) -> None:
        super().__init__()
        self.weight, self.shard = weight, shard

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map (...) int64 ids in [0, V) to (..., D). All processes have ids of one shape."""
        inside, positions = self.shard.locate(self.shard.gather(input_ids.flatten()))
        looked_up = F.embedding(positions, local_tensor(self.weight)).masked_fill(~inside.unsqueeze(1), 0)
        return self.shard.sum_scattered(looked_up).view(*input_ids.shape, -1)


class VocabParallelDenseHead(RegularisedHead):
    """`DenseHead` whose rows are shared out over the processes. Losses and gradients are exact.

    Logits exist for a chunk of `chunk_rows` states of all processes at a time (null takes `default_chunk_rows`). The
    backward pass computes them again, because no process knows the whole softmax in the forward pass. `weight` and
    `bias` are shards of (V, D) and (V,), or (C, D) and (C,).
    """

    def __init__(self, dense: DenseHead, weight: nn.Parameter, bias: nn.Parameter | None, shard: VocabShard) -> None:
        super().__init__(dense.n_embd, dense.vocab_size)
        self.regularise(dense.label_smoothing, dense.z_loss)
        self.chunk_rows, self.shard = dense.chunk_rows, shard
        self.weight, self.bias = weight, bias

    @classmethod
    def build(cls, config: Any, context: Any) -> "VocabParallelDenseHead":
        """Refuse: `split_vocabulary` cuts this head from a whole one."""
        raise NotImplementedError

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the loss as `Head.loss` does. All processes call this together, with equally many states."""
        states, flat = self.flatten(hidden, targets)
        counted, chunk_rows = flat != IGNORE_INDEX, self.chunk_rows or default_chunk_rows(states.device)
        bias = None if self.bias is None else local_tensor(self.bias)
        parts = _VocabParallelSoftmax.apply(states, local_tensor(self.weight), bias, flat, self.shard, chunk_rows)
        log_z, target, mean = parts.unbind(1)
        nll = (log_z - target).masked_fill(~counted, 0)

        def finish(values: Tensor) -> Tensor:
            return reduce_nll(values.view(targets.shape), targets, reduction)

        extra = finish(self.extra_of(nll, target, mean, counted)) if self.adds_extra else None
        return HeadLoss(nll=finish(nll), extra=extra)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return log p of all tokens, (..., V). All processes call this together, and the matrix is gathered."""
        logits = F.linear(hidden, full_tensor(self.weight), None if self.bias is None else full_tensor(self.bias))
        return F.log_softmax(at_least_fp32(logits), dim=-1)

    def flops_per_token(self) -> float:
        """Return 2 D V."""
        return 2.0 * self.n_embd * self.vocab_size


class _VocabParallelSoftmax(torch.autograd.Function):
    """Return (N, 3) for this process's states: log partition function, logit of the target, mean of all logits.

    Equal to: logits = W h + b; logsumexp(logits), logits[target], logits.mean().
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shard: VocabShard, chunk: int
    ) -> Tensor:
        dtype, sum_dtype = working_dtype(states), exact_dtype(working_dtype(states))
        all_states, (inside, positions) = shard.gather(states), shard.locate(shard.gather(targets))
        table, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        log_z = all_states.new_empty(len(all_states), dtype=sum_dtype)
        sums = all_states.new_empty((len(all_states), 3), dtype=sum_dtype)
        for start in range(0, len(all_states), chunk):
            at = slice(start, start + chunk)
            log_z[at], sums[at, 1] = _own_logits(all_states[at], table, cast_bias, positions[at])
        sums[:, 1].masked_fill_(~inside, 0)
        sums[:, 2] = all_states.to(sum_dtype) @ weight.to(sum_dtype).sum(0) / shard.vocab_size
        if bias is not None:
            sums[:, 2] += bias.sum() / shard.vocab_size
        maximum = shard.reduce(log_z, "max")
        sums[:, 0] = (log_z - maximum).exp_()
        sums = shard.reduce(sums, "sum")
        sums[:, 0].log_().add_(maximum)
        ctx.save_for_backward(all_states, weight, bias, inside, positions, sums[:, 0].clone())
        ctx.shard, ctx.chunk_rows, ctx.dtype = shard, chunk, dtype
        return sums[shard.rank * len(states) :][: len(states)].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        all_states, weight, bias, inside, positions, log_z = ctx.saved_tensors
        shard, chunk_rows = ctx.shard, ctx.chunk_rows
        d_sums = shard.gather(gradients[0])
        table, cast_bias = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        d_sums[:, 1].masked_fill_(~inside, 0)
        d_sums[:, 2] /= shard.vocab_size
        d_states, d_weight = torch.empty_like(all_states), torch.zeros_like(weight)
        d_bias = None if bias is None else torch.zeros_like(bias)
        for start in range(0, len(all_states), chunk_rows):
            at = slice(start, start + chunk_rows)
            states = all_states[at].to(table.dtype)
            error = _logit_gradients(states, table, cast_bias, positions[at], log_z[at], d_sums[at])
            if d_bias is not None:
                d_bias += error.sum(0)
            error = error.to(table.dtype)
            d_states[at] = error @ table
            if table.dtype == d_weight.dtype:
                d_weight.addmm_(error.T, states)
            else:
                d_weight += error.T @ states
        return shard.sum_scattered(d_states), d_weight, d_bias, None, None, None


def _own_logits(states: Tensor, table: Tensor, bias: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return for (n, D) states the log-sum-exp of the logits of C rows, and the logits at `positions`."""
    logits = at_least_fp32(F.linear(states.to(table.dtype), table, bias))
    maximum, target = logits.amax(1), logits.gather(1, positions.unsqueeze(1)).squeeze(1)
    return logits.sub_(maximum.unsqueeze(1)).exp_().sum(1).log_().add_(maximum), target  # logsumexp needs a copy


def _logit_gradients(
    states: Tensor, table: Tensor, bias: Tensor | None, positions: Tensor, log_z: Tensor, d_sums: Tensor
) -> Tensor:
    """Return the gradients of (n, C) logits from those of the three sums, (n, 3)."""
    error = at_least_fp32(F.linear(states, table, bias)).sub_(log_z.unsqueeze(1)).exp_().mul_(d_sums[:, :1])
    error.scatter_add_(1, positions.unsqueeze(1), d_sums[:, 1:2])
    return error.add_(d_sums[:, 2:])


def split_vocabulary(model: LanguageModel, process_group: ProcessGroup, device: torch.device | None) -> None:
    """Give each process its rows of the input embedding, and of the matrix and biases of a dense head.

    The model is on the CPU, the same in every process. The rows become shards (torch's `DTensor`) on `device`, which is
    None for a model without data.
    """
    shard, body, head = VocabShard.of(model.head.vocab_size, process_group), model.body, model.head

    @cache  # a table that embedding and head share is cut once
    def cut(parameter: nn.Parameter) -> nn.Parameter:
        return _cut(parameter, shard, device)

    if isinstance(body.wte, nn.Embedding):
        body.wte = VocabParallelEmbedding(cut(body.wte.weight), shard)
    if isinstance(head, DenseHead):
        bias = None if head.bias is None else cut(head.bias)
        model.head = VocabParallelDenseHead(head, cut(head.weight), bias, shard)


def _cut(parameter: nn.Parameter, shard: VocabShard, device: torch.device | None) -> nn.Parameter:
    if device is None:
        return nn.Parameter(parameter.detach()[: shard.max_rows].clone())
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(device.type, (shard.processes,))
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None))


def split_parameters(model: LanguageModel) -> list[nn.Parameter]:
    """Return the parameters that `split_vocabulary` has cut."""
    cut = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding | VocabParallelDenseHead)]
    return list({id(p): p for module in cut for p in module.parameters()}.values())
