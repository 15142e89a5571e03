"""The second step of `grouped` in one kernel, and sums over the rows of each group, for `grouped` and `film`.

The line that the first one equals, with its gradients from autograd:

    logits = F.embedding(groups, scale) * (states @ weight.T) + F.embedding(groups, shift)
    nll = F.cross_entropy(logits, slots, reduction="none")

The line that the sums equal is `to.index_add_(0, groups, values)`, which a GPU adds atomically, in another order every
time. Here the rows of a group are added in their order.

Letters: N tokens, D width, G groups, S slots per group, X numbers of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from grouped_lm.heads.losses.kernels.first import FirstSoftmax, empty_gradients, first_losses
from grouped_lm.heads.losses.kernels.route import Route, route
from grouped_lm.heads.losses.kernels.tiles import LEAST, dot, launch, launching_on, padded, product_options

TILE = 4096
"""Logits of a program. With 8,192 (S = 224, 8 warps) ptxas spills 300 to 900 bytes a thread, with 4,096 nothing."""


def route_groups(groups: Tensor, n_group: int) -> Route:
    """Return the route of (N,) groups in [0, G), or -1, N >= 1."""
    with launching_on(groups.device):
        return route(groups, None, 0, n_group)


def group_loss(
    states: Tensor, weight: Tensor, bias: Tensor, way: Route, to: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """Return the summed -log p(group); (G, D) `weight` has the type of the products.

    The gradient of the states is written into `to`, those of weight and bias are added to it.
    """
    found = None
    with launching_on(states.device):
        if to is not None:
            found = empty_gradients(states, weight.shape[0], weight.dtype, True)._replace(states=to[0])
        nll, _ = first_losses(FirstSoftmax(states, weight, bias, way.classes, None), None, found)
    if to is not None and found is not None:
        to[1].add_(found.columns.sum(0))
        to[2].add_(found.shift.sum(0))
    return nll.sum()


def slot_losses(
    states: Tensor, table: Tensor, scale: Tensor, shift: Tensor, way: Route, slots: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the summed -log p(slot | group), and what its gradients are made of, without elements unless kept.

    Shapes are (N, D), (S, D) in the type of the products, with S at most `MAX_SLOTS`, (G, S), (G, S) and (N,).

    Returns:
        The () loss; (N, S) fp32 gradients of the logits, zero where nothing counts; (N, S) fp32 products W h; and the
        gradients of those, in their type.
    """
    (n_rows, width), n_slot = states.shape, table.shape[0]
    nll = states.new_empty(n_rows, dtype=torch.float32)
    errors, products = (nll.new_empty((n_rows if keep else 0, n_slot)) for _ in range(2))
    d_products = torch.empty_like(errors, dtype=table.dtype)
    tile = slot_tile(n_slot)
    with launching_on(states.device):
        launch(
            slot_rows,
            (triton.cdiv(n_rows, tile["ROWS"]),),
            *(tensor.contiguous() for tensor in (states, table, scale, shift, way.classes, slots)),
            *(nll, errors, products, d_products),
            *(n_rows, width, n_slot),
            KEEP=keep,
            num_stages=2,
            **tile,
            **product_options(table.dtype),
        )
    return nll.sum(), errors, products, d_products


def slot_tile(n_slot: int) -> dict[str, int]:
    """Return the sizes of the tile for S slots: all logits of some rows, and few columns of the states at a time."""
    slots = padded(n_slot)
    rows = max(LEAST, min(64, TILE // slots))
    return {
        "ROWS": rows,
        "SLOTS": slots,
        "WIDTH": 32 if slots <= 512 else 16,
        "num_warps": 8 if rows * slots >= 8192 else 4,
    }


def add_by_group(values: Tensor, factors: Tensor | None, route: Route, to: Tensor, to_products: Tensor | None) -> None:
    """Add the (N, X) values of each group's rows to its row of (G, X) `to`, and values times factors to the other."""
    (n_group, numbers), nothing = to.shape, values
    with launching_on(values.device):
        launch(
            group_sums,
            (n_group, triton.cdiv(numbers, 128)),
            values.contiguous(),
            nothing if factors is None else factors.contiguous(),
            route.place,
            route.borders,
            to,
            nothing if to_products is None else to_products,
            numbers,
            PRODUCTS=factors is not None,
            ROWS=16,
            NUMBERS=128,
        )


@triton.jit
def slot_rows(
    states,
    table,
    scale,
    shift,
    groups,
    slots,
    nll,
    errors,
    products_to,
    d_products,
    n_rows,
    width,
    n_slot,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Compute the losses of some rows, each in its own group; with KEEP also their errors."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    there = row < n_rows
    real = slot < n_slot
    group = tl.load(groups + row, mask=there, other=-1)
    target = tl.load(slots + row, mask=there, other=0)
    counted = group >= 0

    products = tl.zeros((ROWS, SLOTS), tl.float32)
    for start in range(0, width, WIDTH):
        column = start + tl.arange(0, WIDTH)
        inside = column < width
        h = tl.load(states + row[:, None] * width + column[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        w = tl.load(table + slot[None, :] * width + column[:, None], mask=real[None, :] & inside[:, None], other=0.0)
        products = dot(h.to(KIND), w, products, PRECISION, WIDEN)

    place = group.to(tl.int32)[:, None] * n_slot + slot[None, :]
    own = counted[:, None] & real[None, :]
    factor = tl.load(scale + place, mask=own, other=0.0).to(tl.float32)
    logits = factor * products + tl.load(shift + place, mask=own, other=float("-inf")).to(tl.float32)
    logits = tl.where(counted[:, None], logits, 0.0)  # a row of -inf alone would make NaN
    largest = tl.max(logits, 1)
    powers = tl.exp(logits - largest[:, None])
    total = tl.sum(powers, 1)
    hit = slot[None, :] == target[:, None]
    value = tl.log(total) + largest - tl.sum(tl.where(hit, logits, 0.0), 1)
    tl.store(nll + row, tl.where(counted, value, 0.0), mask=there)
    if KEEP:
        error = tl.where(own, powers / total[:, None] - hit.to(tl.float32), 0.0)
        at = row[:, None] * n_slot + slot[None, :]
        mask = there[:, None] & real[None, :]
        tl.store(errors + at, error, mask=mask)
        tl.store(products_to + at, products, mask=mask)
        tl.store(d_products + at, (error * factor).to(KIND), mask=mask)


@triton.jit
def group_sums(
    values,
    factors,
    place,
    borders,
    to,
    to_products,
    numbers,
    PRODUCTS: tl.constexpr,
    ROWS: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Add the rows of one group in their order, some numbers of them."""
    group = tl.program_id(0)
    x = tl.program_id(1) * NUMBERS + tl.arange(0, NUMBERS)
    last = tl.load(borders + group + 1)
    total = tl.zeros((NUMBERS,), tl.float32)
    products = tl.zeros((NUMBERS,), tl.float32)
    for start in range(tl.load(borders + group), last, ROWS):
        sorted_row = start + tl.arange(0, ROWS)
        there = sorted_row < last
        row = tl.load(place + sorted_row, mask=there, other=0).to(tl.int64)
        mask = there[:, None] & (x < numbers)[None, :]
        value = tl.load(values + row[:, None] * numbers + x[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(value, 0)
        if PRODUCTS:
            factor = tl.load(factors + row[:, None] * numbers + x[None, :], mask=mask, other=0.0).to(tl.float32)
            products += tl.sum(value * factor, 0)
    at = group.to(tl.int64) * numbers + x
    total += tl.load(to + at, mask=x < numbers, other=0.0).to(tl.float32)
    tl.store(to + at, total.to(to.dtype.element_ty), mask=x < numbers)
    if PRODUCTS:
        products += tl.load(to_products + at, mask=x < numbers, other=0.0).to(tl.float32)
        tl.store(to_products + at, products.to(to_products.dtype.element_ty), mask=x < numbers)
