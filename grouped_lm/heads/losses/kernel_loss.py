"""The loss of a head of two steps by kernels: a softmax over classes, then one over the tokens of a group.

Every token has a row of one (V, D) table. The line that it equals is `ShortlistHead.loss` or `ClassFullHead.loss`
without kernels. In eager mode it is an `autograd.Function`, which costs the host half as much as an operator. Under
`torch.compile` and with fake tensors it is an operator, whose shapes follow from those of its inputs.

Letters: N tokens, D width, V vocabulary, K shortlist, C columns of the first softmax, G groups, H of them reserved.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from grouped_lm.heads.losses.functional import HeadLoss, may_overwrite, working_dtype
from grouped_lm.heads.losses.kernels import DTYPES, TABLE_TOKENS, chosen


class TokenIndex(nn.Module):
    """The place of each token in shortlist and groups, in the order in which kernels read it.

    Args:
        token_to_group: (V,) groups in [0, G), -1 in the shortlist; fake tensors give an index of the right shapes.
        token_to_slot: (V,) places in the group or in the shortlist.
        n_group: G.
        n_single: K.
        parts: (V,) share of each token in the mean row of its group; None where there are no mean rows.
        reserved: (H,) log-probabilities of the last groups, which share the rest with the others.
    """

    token_class: Tensor  # (V,) int32, the place in the shortlist, or K + g in group g
    token_slot: Tensor  # (V,) int32
    ids: Tensor  # (V,) int32, first the shortlist's, then the groups', by group and slot
    starts: Tensor  # (G + 1,) int32 first token of each group among the tokens in groups, and their number
    parts: Tensor  # (V - K,) fp32 shares of the tokens in groups in the mean rows
    fixed: Tensor  # (K + G,) fp32 constant part of -log p(class)
    work: Tensor  # (B, 3) int32 blocks of tokens: group, or -1 in the shortlist; first place in `ids`; count

    def __init__(
        self,
        token_to_group: Tensor,
        token_to_slot: Tensor,
        n_group: int,
        n_single: int,
        parts: Tensor | None,
        reserved: Tensor,
    ) -> None:
        super().__init__()
        group, slot = token_to_group.long(), token_to_slot.long()
        vocab_size, fake = group.numel(), is_fake(group)
        order = torch.argsort((group + 1) * (vocab_size + 1) + slot)
        sizes = torch.zeros(n_group + 1, dtype=torch.int64, device=group.device).index_add(
            0, group + 1, torch.ones_like(group)
        )
        starts = F.pad(sizes[1:].cumsum(0), (1, 0))
        inside = order[n_single:]
        shares = torch.zeros(len(inside), device=group.device) if parts is None else parts[inside].float()
        rest = -torch.log1p(-reserved.double().exp().sum()).float().expand(n_single + n_group - len(reserved))
        values = {
            "token_class": torch.where(group < 0, slot, group + n_single).int(),
            "token_slot": slot.int(),
            "ids": order.int(),
            "starts": starts.int(),
            "parts": shares,
            "fixed": torch.cat([rest, -reserved.float()]),
            "work": _fake_work(starts, vocab_size, n_single, n_group) if fake else _work(n_single, starts),
        }
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def fits(self, states: Tensor, weight: Tensor) -> bool:
        """Return whether the loss of these (N, D) states and this (V, D) table is computed by kernels."""
        if not states.shape[0] or states.dtype not in DTYPES or weight.dtype not in DTYPES:
            return False
        return chosen(states.device, working_dtype(states), self.starts.shape[0] - 1)


def _fake_work(starts: Tensor, vocab_size: int, n_single: int, n_group: int) -> Tensor:
    """Return as many blocks as groups of one size have."""
    blocks = -(-n_single // TABLE_TOKENS) + n_group * -(-(vocab_size - n_single) // (n_group * TABLE_TOKENS))
    return starts.new_zeros((blocks, 3), dtype=torch.int32)


def _work(n_single: int, starts: Tensor) -> Tensor:
    """Return the blocks of at most `TABLE_TOKENS` tokens of one group, or of the shortlist."""
    begin = F.pad(starts + n_single, (1, 0))  # the shortlist is the first of G + 1 sets
    size = begin.diff()
    blocks = (size + TABLE_TOKENS - 1) // TABLE_TOKENS
    blocks[1:].clamp_min_(1)  # a group without tokens has a bias too
    owner = torch.repeat_interleave(blocks)
    number = torch.arange(len(owner), device=starts.device) - (blocks.cumsum(0) - blocks)[owner]
    first = begin[owner] + number * TABLE_TOKENS
    count = (size[owner] - number * TABLE_TOKENS).clamp_max(TABLE_TOKENS)
    return torch.stack([owner - 1, first, count], 1).int().contiguous()


def kernel_loss(
    states: Tensor,
    table: tuple[Tensor, Tensor],
    first: tuple[Tensor | None, Tensor],
    index: TokenIndex,
    targets: Tensor,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -log p(token), and its parts -log p(class) and -log p(token | class), in nats and fp32.

    They are means over the targets that count, or sums; the parts have no gradient then. With reduction "none" they
    are (N,), zero where ignored. A target outside [0, V) that is not IGNORE_INDEX has the loss NaN.

    Args:
        states: (N, D), N >= 1; the index `fits` them.
        table: (V, D) rows and (V,) biases of the tokens.
        first: (C, D) weights and (C,) biases of the first softmax; or None and the (C - K,) biases of groups, whose
            weights are the rows of the shortlist and the mean rows of groups.
        index: of the tokens.
        targets: (N,) int64.
        reduction: mean, sum or none.

    Raises:
        ValueError: another reduction.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    buffers = index.token_class, index.token_slot, index.ids, index.starts, index.parts, index.fixed, index.work
    given = states.contiguous(), table[0].contiguous(), table[1], *first, *buffers, targets
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in given if t is not None)
    options = working_dtype(states), reduction == "mean", keep
    traced = torch.compiler.is_compiling()
    if reduction == "none":
        one, other, *_ = (_traced_rows if traced else _EagerRows.apply)(*given, options[0])
        return one + other, one, other
    total, one, other, *_ = (_traced_sums if traced else _EagerSums.apply)(*given, *options)
    return total, one, other


def head_loss(parts: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> HeadLoss:
    """Return the result of `kernel_loss` for targets of any shape."""
    return HeadLoss(*(part.view(targets.shape) if part.ndim else part for part in parts))


N_INPUTS, N_KEPT = 12, 9
TENSORS = (
    "Tensor states, Tensor weight, Tensor bias, Tensor? class_weight, Tensor class_bias, Tensor token_class, "
    "Tensor token_slot, Tensor ids, Tensor starts, Tensor parts, Tensor fixed, Tensor work"
)
"""`Inputs` of the kernels."""
KEPT = (
    "Tensor slots, Tensor place, Tensor borders, Tensor tiles, Tensor classes, Tensor log_mass, Tensor d_states, "
    "Tensor d_columns, Tensor d_shift"
)
"""`Kept` of the kernels."""


def _sums(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the loss, its two parts, their divisor, and what is kept."""
    from grouped_lm.heads.losses.kernels import two_steps

    *tensors, targets, dtype, mean, keep = arguments
    first, inside, kept = two_steps.losses(two_steps.Inputs(*tensors), targets, dtype, keep)
    return *two_steps.sums(first, inside, kept.classes, mean), *kept


def _rows(*arguments: Any) -> tuple[Tensor, ...]:
    """Return both losses of each row, and what is kept."""
    from grouped_lm.heads.losses.kernels import two_steps

    *tensors, targets, dtype = arguments
    first, inside, kept = two_steps.losses(two_steps.Inputs(*tensors), targets, dtype, False)
    return first, inside, *kept


def _sum_gradients(*arguments: Any, overwrite: bool = False) -> tuple[Tensor, ...]:
    """Return the gradients of the first five inputs; the third has no elements where it has no input."""
    from grouped_lm.heads.losses.kernels import two_steps

    *tensors, divisor, d_total, dtype = arguments
    given, kept = two_steps.Inputs(*tensors[:N_INPUTS]), two_steps.Kept(*tensors[N_INPUTS:])
    found = two_steps.gradients_of_sum(given, kept, dtype, d_total, divisor, overwrite)
    return tuple(d_total.new_empty(0) if gradient is None else gradient for gradient in found)


def _row_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the first five inputs; the third has no elements where it has no input."""
    from grouped_lm.heads.losses.kernels import two_steps

    *tensors, d_first, d_inside, dtype = arguments
    given, kept = two_steps.Inputs(*tensors[:N_INPUTS]), two_steps.Kept(*tensors[N_INPUTS:])
    found = two_steps.gradients_of_rows(given, kept, dtype, d_first, d_inside)
    return tuple(d_first.new_empty(0) if gradient is None else gradient for gradient in found)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the inputs and what was computed; the targets are no longer needed. The last outputs are kept alone."""
    n_loss = 1 if len(output) == 4 + N_KEPT else 2
    ctx.dtype, ctx.n_input, ctx.has_rows = inputs[N_INPUTS + 1], len(inputs), inputs[3] is not None
    ctx.set_materialize_grads(False)  # no zeros for the outputs without a gradient
    ctx.mark_non_differentiable(*output[n_loss:])
    ctx.save_for_backward(*inputs[:N_INPUTS], *output[-N_KEPT:], *output[3:-N_KEPT])


def _gradients(ctx: Any, compute: Callable[..., tuple[Tensor, ...]], *d_losses: Tensor | None) -> tuple[Any, ...]:
    """Return the gradients of the inputs for those of the losses, None where all of those are None."""
    some = next((d for d in d_losses if d is not None), None)
    if some is None:
        return (None,) * ctx.n_input
    whole = [torch.zeros_like(some) if d is None else d.contiguous() for d in d_losses]
    states, weight, bias, class_weight, class_bias = compute(*ctx.saved_tensors, *whole, ctx.dtype)
    found = states, weight, bias, class_weight if ctx.has_rows else None, class_bias
    return *found, *[None] * (ctx.n_input - len(found))


class _EagerSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        outputs = _sums(*arguments)
        _save(ctx, arguments, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, *_: None) -> tuple[Any, ...]:
        return _gradients(ctx, partial(_sum_gradients, overwrite=may_overwrite()), d_total)


class _EagerRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        outputs = _rows(*arguments)
        _save(ctx, arguments, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, d_first: Tensor | None, d_inside: Tensor | None, *_: None) -> tuple[Any, ...]:
        may_overwrite()  # refuses second derivatives
        return _gradients(ctx, _row_gradients, d_first, d_inside)


def _operator(name: str, compute: Callable[..., Any], given: str, n_outputs: int) -> Any:
    schema = f"({given}) -> ({', '.join(['Tensor'] * n_outputs)})"
    return torch.library.custom_op(f"grouped_lm::{name}", compute, mutates_args=(), schema=schema)


_traced_sums = _operator(
    "two_steps", _sums, f"{TENSORS}, Tensor targets, ScalarType dtype, bool mean, bool keep", 4 + N_KEPT
)
_traced_rows = _operator("two_steps_rows", _rows, f"{TENSORS}, Tensor targets, ScalarType dtype", 2 + N_KEPT)
_traced_sum_gradients = _operator(
    "two_steps_backward", _sum_gradients, f"{TENSORS}, {KEPT}, Tensor divisor, Tensor d_total, ScalarType dtype", 5
)
_traced_row_gradients = _operator(
    "two_steps_rows_backward",
    _row_gradients,
    f"{TENSORS}, {KEPT}, Tensor d_first, Tensor d_inside, ScalarType dtype",
    5,
)


def _kept_shapes(tensors: Any, dtype: torch.dtype, keep: bool) -> tuple[Tensor, ...]:
    from grouped_lm.heads.losses.kernels import two_steps

    return two_steps.shapes(two_steps.Inputs(*tensors), dtype, keep)


def _sum_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, _targets, dtype, _mean, keep = arguments
    numbers = [tensors[0].new_empty((), dtype=torch.float32) for _ in range(4)]
    return *numbers, *_kept_shapes(tensors, dtype, keep)


def _row_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, _targets, dtype = arguments
    both = [tensors[0].new_empty(len(tensors[0]), dtype=torch.float32) for _ in range(2)]
    return *both, *_kept_shapes(tensors, dtype, False)


def _gradient_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(arguments[0].new_empty(0) if t is None else torch.empty_like(t) for t in arguments[:5])


_traced_sums.register_fake(_sum_shapes)
_traced_rows.register_fake(_row_shapes)
_traced_sum_gradients.register_fake(_gradient_shapes)
_traced_row_gradients.register_fake(_gradient_shapes)
_traced_sums.register_autograd(lambda ctx, d, *_: _gradients(ctx, _traced_sum_gradients, d), setup_context=_save)
_traced_rows.register_autograd(lambda ctx, a, b, *_: _gradients(ctx, _traced_row_gradients, a, b), setup_context=_save)
