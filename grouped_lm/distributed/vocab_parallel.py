"""Token tables cut by rows: each of W processes has V/W of them, with their gradients and optimizer state.

What travels is states, not tables. Embedding: every process looks up the tokens of all that stand in its rows, and the
sum of what they found goes back to whose tokens these are. Full softmax: every process takes the logits of its rows for
the states of all; maxima, sums of exponentials and the targets' logits are put together, as Megatron-LM does (Shoeybi
et al. 2019, arXiv 1909.08053, section 3). Gradients of rows are then whole where the rows are.

Letters: N tokens of one process, W processes, M = N W, D width, V vocabulary, C = ceil(V/W) rows of one process (the
last one may have fewer).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives  # derivatives of the operators in COLLECTIVES
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.distributed.process_group import ProcessGroup, full_tensor, local_tensor
from grouped_lm.errors import ConfigError
from grouped_lm.heads.base import Head, HeadLoss, at_least_fp32, flatten, reduce_nll
from grouped_lm.heads.dense import DenseHead
from grouped_lm.heads.losses.chunked import default_chunk_rows, exact_dtype, working_dtype
from grouped_lm.models.lm import LanguageModel

COLLECTIVES: Any = torch.ops._c10d_functional
"""Torch's functional collectives: they have derivatives, and work on shapes alone for a plan, without any process."""


@dataclass(frozen=True)
class Rows:
    """Which rows of V one of W processes has, and by what name torch knows the group of all."""

    vocab_size: int
    rank: int
    processes: int
    group: str = ""

    @classmethod
    def of(cls, vocab_size: int, process_group: ProcessGroup) -> "Rows":
        """Return the rows of this process.

        Raises:
            ConfigError: V is so small that a process would have none.
        """
        group = dist.group.WORLD
        rows = cls(vocab_size, process_group.rank, process_group.size, "" if group is None else group.group_name)
        if rows.most * (process_group.size - 1) >= vocab_size:
            raise ConfigError(
                f"train.vocab_parallel=true gives each of {process_group.size} processes {rows.most} of {vocab_size} "
                "tokens, and the last ones none: leave it out"
            )
        return rows

    @property
    def most(self) -> int:
        """C, of every process but perhaps the last."""
        return -(-self.vocab_size // self.processes)

    def mine(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return for (M,) ids which are in these rows, and where there (0 for those that are not)."""
        first = self.rank * self.most
        inside = (ids >= first) & (ids < min(first + self.most, self.vocab_size))
        return inside, (ids - first).masked_fill(~inside, 0)

    def gather(self, part: Tensor) -> Tensor:
        """Return (M, ...) of the (N, ...) of every process; the derivative is a sum, scattered."""
        gathered = COLLECTIVES.all_gather_into_tensor(part.contiguous(), self.processes, self.group)
        return COLLECTIVES.wait_tensor(gathered)

    def sum_scattered(self, parts: Tensor) -> Tensor:
        """Return this process's (N, ...) of the sum over all of (M, ...); the derivative is gathered."""
        summed = COLLECTIVES.reduce_scatter_tensor(parts.contiguous(), "sum", self.processes, self.group)
        return COLLECTIVES.wait_tensor(summed)

    def reduce(self, values: Tensor, how: str) -> Tensor:
        """Return the "sum" or "max" over all processes."""
        return COLLECTIVES.wait_tensor(COLLECTIVES.all_reduce(values, how, self.group))


class SplitEmbedding(nn.Module):
    """`nn.Embedding` of (V, D), of which this process has some rows.

    Args:
        weight: (V, D) as a shard, or (C, D).
        rows: which these are.
    """

    def __init__(self, weight: nn.Parameter, rows: Rows) -> None:
        super().__init__()
        self.weight, self.rows = weight, rows

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map (...) int64 ids in [0, V), of one shape in all processes, to (..., D)."""
        inside, places = self.rows.mine(self.rows.gather(input_ids.flatten()))
        found = F.embedding(places, local_tensor(self.weight)).masked_fill(~inside.unsqueeze(1), 0)
        return self.rows.sum_scattered(found).view(*input_ids.shape, -1)


class SplitDenseHead(Head):
    """`DenseHead`, of whose (V, D) matrix and (V,) biases this process has some rows; losses and gradients are exact.

    Logits live a chunk of `chunk_rows` states of all processes at a time (null takes `default_chunk_rows`), and are
    computed again in the backward pass: before they have met, no process knows the softmax.

    Args:
        dense: the whole head.
        weight: (V, D) as a shard, or (C, D).
        bias: (V,) as a shard, (C,), or None.
        rows: which these are.
    """

    regularised: ClassVar[bool] = True

    def __init__(self, dense: DenseHead, weight: nn.Parameter, bias: nn.Parameter | None, rows: Rows) -> None:
        super().__init__(dense.n_embd, dense.vocab_size)
        self.regularise(dense.label_smoothing, dense.z_loss)
        self.chunk_rows, self.rows = dense.chunk_rows, rows
        self.weight, self.bias = weight, bias

    @classmethod
    def build(cls, config: Any, context: Any) -> "SplitDenseHead":
        """Not built from a config: it is cut from a whole head by `split_vocabulary`."""
        raise NotImplementedError

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """See `Head.loss`; all processes ask together, with as many states each."""
        states, flat = flatten(hidden, targets)
        counted, chunk_rows = flat != IGNORE_INDEX, self.chunk_rows or default_chunk_rows(states.device)
        bias = None if self.bias is None else local_tensor(self.bias)
        parts = _SplitSoftmax.apply(states, local_tensor(self.weight), bias, flat, self.rows, chunk_rows)
        log_z, target, mean = parts.unbind(1)
        nll = (log_z - target).masked_fill(~counted, 0)

        def finish(values: Tensor) -> Tensor:
            return reduce_nll(values.view(targets.shape), targets, reduction)

        extra = finish(self.extra_of(nll, target, mean, counted)) if self.adds_extra else None
        return HeadLoss(nll=finish(nll), extra=extra)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """See `Head.log_prob`; all processes ask together, and the matrix is gathered."""
        logits = F.linear(hidden, full_tensor(self.weight), None if self.bias is None else full_tensor(self.bias))
        return F.log_softmax(at_least_fp32(logits), dim=-1)

    def flops_per_token(self) -> float:
        """Return 2 D V."""
        return 2.0 * self.n_embd * self.vocab_size


class _SplitSoftmax(torch.autograd.Function):
    """(N, 3) of this process's states: log of the partition function, logit of the target, mean of all logits.

    The slow line: logits = W h + b; logsumexp(logits), logits[target], logits.mean().
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: Rows, chunk_rows: int
    ) -> Tensor:
        dtype, exact = working_dtype(states), exact_dtype(working_dtype(states))
        every, (inside, places) = rows.gather(states), rows.mine(rows.gather(targets))
        table, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
        log_z, sums = every.new_empty(len(every), dtype=exact), every.new_empty((len(every), 3), dtype=exact)
        for start in range(0, len(every), chunk_rows):
            at = slice(start, start + chunk_rows)
            log_z[at], sums[at, 1] = _own_logits(every[at], table, shift, places[at])
        sums[:, 1].masked_fill_(~inside, 0)
        sums[:, 2] = every.to(exact) @ weight.to(exact).sum(0) / rows.vocab_size
        if bias is not None:
            sums[:, 2] += bias.sum() / rows.vocab_size
        top = rows.reduce(log_z, "max")
        sums[:, 0] = (log_z - top).exp_()
        sums = rows.reduce(sums, "sum")
        sums[:, 0].log_().add_(top)
        ctx.save_for_backward(every, weight, bias, inside, places, sums[:, 0].clone())
        ctx.rows, ctx.chunk_rows, ctx.dtype = rows, chunk_rows, dtype
        return sums[rows.rank * len(states) :][: len(states)].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        every, weight, bias, inside, places, log_z = ctx.saved_tensors
        rows, chunk_rows = ctx.rows, ctx.chunk_rows
        given = rows.gather(gradients[0])
        table, shift = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        given[:, 1].masked_fill_(~inside, 0)
        given[:, 2] /= rows.vocab_size
        d_every, d_weight = torch.empty_like(every), torch.zeros_like(weight)
        d_bias = None if bias is None else torch.zeros_like(bias)
        for start in range(0, len(every), chunk_rows):
            at = slice(start, start + chunk_rows)
            _add_chunk(every[at], table, shift, places[at], log_z[at], given[at], d_every[at], d_weight, d_bias)
        return rows.sum_scattered(d_every), d_weight, d_bias, None, None, None


def _own_logits(part: Tensor, table: Tensor, shift: Tensor | None, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return of (n, D) states the log-sum-exp of the logits of C rows, and the logits at `places`."""
    logits = at_least_fp32(F.linear(part.to(table.dtype), table, shift))
    top, target = logits.amax(1), logits.gather(1, places.unsqueeze(1)).squeeze(1)
    return logits.sub_(top.unsqueeze(1)).exp_().sum(1).log_().add_(top), target  # logsumexp would hold them twice


def _add_chunk(
    part: Tensor,
    table: Tensor,
    shift: Tensor | None,
    places: Tensor,
    log_z: Tensor,
    given: Tensor,
    d_part: Tensor,
    d_weight: Tensor,
    d_bias: Tensor | None,
) -> None:
    """Write the gradient of (n, D) states, and add to those of C rows; `given` (n, 3) is that of sums."""
    part = part.to(table.dtype)
    error = at_least_fp32(F.linear(part, table, shift)).sub_(log_z.unsqueeze(1)).exp_().mul_(given[:, :1])
    error.scatter_add_(1, places.unsqueeze(1), given[:, 1:2])
    error += given[:, 2:]
    if d_bias is not None:
        d_bias += error.sum(0)
    error = error.to(table.dtype)
    d_part.copy_(error @ table)
    if table.dtype == d_weight.dtype:
        d_weight.addmm_(error.T, part)
    else:
        d_weight += error.T @ part


def split_vocabulary(model: LanguageModel, process_group: ProcessGroup, device: torch.device | None) -> None:
    """Cut the input embedding, and the matrix and biases of a dense head, into rows of each process; others stay whole.

    Args:
        model: on the CPU, the same in every process.
        process_group: the processes.
        device: of the rows, which become shards there, torch's `DTensor`; None gives a model of shapes alone its part.

    Raises:
        ConfigError: see `Rows.of`.
    """
    rows, body, head = Rows.of(model.head.vocab_size, process_group), model.body, model.head
    made: dict[int, nn.Parameter] = {}

    def cut(parameter: nn.Parameter) -> nn.Parameter:
        if id(parameter) not in made:
            made[id(parameter)] = _cut(parameter, rows, device)
        return made[id(parameter)]

    if isinstance(body.wte, nn.Embedding):
        body.wte = SplitEmbedding(cut(body.wte.weight), rows)  # type: ignore[arg-type]
    if isinstance(head, DenseHead):
        bias = None if head.bias is None else cut(head.bias)
        model.head = SplitDenseHead(head, cut(head.weight), bias, rows)


def _cut(parameter: nn.Parameter, rows: Rows, device: torch.device | None) -> nn.Parameter:
    if device is None:
        return nn.Parameter(parameter.detach()[: rows.most].clone())
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh(device.type, (rows.processes,))
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None))


def split_parameters(model: LanguageModel) -> list[nn.Parameter]:
    """Return what `split_vocabulary` has cut."""
    cut = [module for module in model.modules() if isinstance(module, SplitEmbedding | SplitDenseHead)]
    return list({id(p): p for module in cut for p in module.parameters()}.values())
