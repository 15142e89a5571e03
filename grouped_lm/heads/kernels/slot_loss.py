"""The second step of `grouped` in one kernel: slot logits, scale and shift of each row's own group, softmax, gradients.

The line that it equals, with its gradients from autograd:

    logits = F.embedding(groups, scale) * (states @ weight.T) + F.embedding(groups, shift)
    nll = F.cross_entropy(logits, slots, reduction="none")

Rows are taken as they come. Those of one group add to one row of the gradients of scale and shift by atomic additions,
whose order, and so the last bits of these two, is not the same every time.

Letters: N tokens, D width, G groups, S slots per group.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.kernels.tiles import dot, product_options, row_tile

CHUNK_ROWS = 8192
"""Rows whose (N, S) gradients of the slot logits exist at once: 3.7 MB in bf16 at S = 224."""
TILE = 4096
"""Logits of a program. With 8,192 (S = 224, 8 warps) ptxas spills 300 to 900 bytes a thread, with these nothing."""


@dataclass(frozen=True, slots=True)
class SlotGradients:
    """Of the summed loss: (N, D) states, (S, D) weight, (G, S) scale and shift."""

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
    keep: bool,
) -> tuple[Tensor, SlotGradients | None]:
    """Return (N,) -log p(slot | group) in fp32, zero where the group is -1, and with `keep` the gradients of their sum.

    Args:
        states: (N, D).
        weight: (S, D), S at most `MAX_SLOTS`.
        scale, shift: (G, S), contiguous; shift is -inf at slots that no token has.
        groups: (N,) int64 in [0, G), or -1.
        slots: (N,) int64 in [0, S).
        dtype: of the matrix products.
        keep: whether gradients are wanted.
    """
    (n_rows, width), n_slot = states.shape, weight.shape[0]
    states, scale, shift, groups, slots = (t.contiguous() for t in (states, scale, shift, groups, slots))
    table = weight.to(dtype).contiguous()
    tile = row_tile(n_slot, TILE)
    nll = states.new_empty(n_rows, dtype=torch.float32)
    found = None
    if keep:
        sums = (torch.zeros_like(t, dtype=torch.float32) for t in (weight, scale, shift))
        found = SlotGradients(torch.empty_like(states), *sums)
    for start in range(0, n_rows, CHUNK_ROWS):
        part = slice(start, min(start + CHUNK_ROWS, n_rows))
        count = part.stop - start
        d_products = states.new_empty((count if keep else 0, n_slot), dtype=dtype)
        _slot_rows[(triton.cdiv(count, tile.rows),)](
            states[part],
            table,
            scale,
            shift,
            groups[part],
            slots[part],
            nll[part],
            d_products,
            found.scale if found else nll,
            found.shift if found else nll,
            count,
            width,
            n_slot,
            KEEP=keep,
            **product_options(dtype),
            ROWS=tile.rows,
            SLOTS=tile.slots,
            WIDTH=tile.width,
            num_warps=tile.warps,
            num_stages=2,
        )
        if found:
            found.states[part] = d_products @ table
            found.weight.add_(d_products.T @ states[part].to(dtype))
    return nll, found


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
