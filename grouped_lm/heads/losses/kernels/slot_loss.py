"""The second step of `grouped` in one kernel: slot logits, scale and shift of each row's own group, softmax, gradients.

The line that it equals, with its gradients from autograd:

    logits = F.embedding(groups, scale) * (states @ weight.T) + F.embedding(groups, shift)
    nll = F.cross_entropy(logits, slots, reduction="none")

Rows are not sorted. Those of one group add to one row of the gradients of scale and shift by atomic additions. Their
order differs from run to run, and so do the last bits of these two.

Letters: N tokens, D width, G groups, S slots per group.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.losses.kernels.tiles import dot, launching_on, product_options, row_tile

TILE = 4096
"""Logits of a program. With 8,192 (S = 224, 8 warps) ptxas spills 300 to 900 bytes a thread, with 4,096 nothing."""


@dataclass(frozen=True, slots=True)
class SlotGradients:
    """Gradients of the summed loss: (N, D), (S, D), (G, S), (G, S). They are in fp32, but that of the states."""

    states: Tensor
    weight: Tensor
    scale: Tensor
    shift: Tensor


def slot_loss(
    states: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    groups: Tensor,
    slots: Tensor,
    dtype: torch.dtype,
    to: SlotGradients | None,
) -> Tensor:
    """Return (N,) -log p(slot | group) in fp32, zero where the group is -1; add the gradients of their sum to `to`.

    Shapes are (N, D), (S, D) with S at most `MAX_SLOTS`, (G, S) and (G, S), (N,) and (N,); `to` is contiguous. The
    (N, S) gradients of the slot logits exist in between, in the type of the products.
    """
    (n_rows, width), n_slot = states.shape, weight.shape[0]
    tile, table = row_tile(n_slot, TILE), weight.to(dtype).contiguous()
    nll = states.new_empty(n_rows, dtype=torch.float32)
    d_products = states.new_empty((n_rows if to else 0, n_slot), dtype=dtype)
    if n_rows:
        with launching_on(states.device):
            _slot_rows[(triton.cdiv(n_rows, tile.rows),)](
                *(tensor.contiguous() for tensor in (states, table, scale, shift, groups, slots)),
                nll,
                d_products,
                to.scale if to else nll,
                to.shift if to else nll,
                n_rows,
                width,
                n_slot,
                KEEP=to is not None,
                **tile.options,
                **product_options(dtype),
            )
    if to:
        to.states.add_(d_products @ table)
        to.weight.add_(d_products.T @ states.to(dtype))
    return nll


@triton.jit
def _slot_rows(
    states,
    table,
    scale,
    shift,
    groups,
    slots,
    nll,
    d_products,
    d_scale,
    d_shift,
    n_rows,
    width,
    n_slot,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    there, real = row < n_rows, slot < n_slot
    group = tl.load(groups + row, mask=there, other=-1)
    target = tl.load(slots + row, mask=there, other=0)
    counted = group >= 0

    products = tl.zeros((ROWS, SLOTS), tl.float32)
    for start in range(0, width, WIDTH):
        column = start + tl.arange(0, WIDTH)
        inside = column < width
        h = tl.load(states + row[:, None] * width + column, mask=there[:, None] & inside, other=0.0)
        w = tl.load(table + slot * width + column[:, None], mask=real & inside[:, None], other=0.0)
        products = dot(h.to(w.dtype), w, products, PRECISION, WIDEN)

    place = group.to(tl.int32)[:, None] * n_slot + slot
    own = counted[:, None] & real
    factor = tl.load(scale + place, mask=own, other=0.0).to(tl.float32)
    logits = factor * products + tl.load(shift + place, mask=own, other=float("-inf")).to(tl.float32)
    logits = tl.where(counted[:, None], logits, 0.0)  # a row of -inf alone would make NaN
    largest = tl.max(logits, 1)
    powers = tl.exp(logits - largest[:, None])
    total = tl.sum(powers, 1)
    hit = slot == target[:, None]
    value = tl.log(total) + largest - tl.sum(tl.where(hit, logits, 0.0), 1)
    tl.store(nll + row, tl.where(counted, value, 0.0), mask=there)
    if KEEP:
        error = tl.where(own, powers / total[:, None] - hit.to(tl.float32), 0.0)
        tl.atomic_add(d_shift + place, error, mask=own, sem="relaxed")
        tl.atomic_add(d_scale + place, error * products, mask=own, sem="relaxed")
        to = d_products + row[:, None] * n_slot + slot
        tl.store(to, (error * factor).to(d_products.dtype.element_ty), mask=there[:, None] & real)
