"""`gvc bench heads`: time and memory of the output layer alone, forward and backward.

Letters: N tokens, D width, V vocabulary, e bytes per number.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.bench.checks import check_columns
from grouped_lm.bench.implementations import BASELINE, Implementation, Option, forget_compiled, tune
from grouped_lm.bench.results import Cell, Row
from grouped_lm.bench.timing import Place, Sampler
from grouped_lm.bench.workload import Workload, draw_ids
from grouped_lm.heads import Head
from grouped_lm.measure.memory import GIB, measure_head_peak_gib

FLOAT_BYTES = 4
CHUNK = 256
"""Rows of logits that the floor of memory counts. Smaller chunks need less, and are slower."""


def heads_cells(work: Workload) -> list[Cell]:
    """Return a cell per N and D. All implementations take turns in it."""
    grid = work.settings.heads
    return [
        ({"n_tokens": n, "n_embd": d, "vocab_size": work.vocab_size}, partial(measure_cell, work, n, d))
        for d in grid.n_embd
        for n in grid.n_tokens
    ]


def measure_cell(work: Workload, n_tokens: int, n_embd: int) -> list[Row]:
    """Return a row per implementation: choose options, time all in turn, then check and measure memory one by one."""
    torch.manual_seed(work.settings.seed)
    forget_compiled(work.implementations)
    place, device = work.place, work.place.device
    hidden = torch.randn(n_tokens, n_embd).to(device).requires_grad_()
    targets = draw_ids(work.counts, n_tokens, work.settings.seed).to(device)
    wte = nn.Parameter(0.02 * torch.randn(work.vocab_size, n_embd).to(device))

    def tuned(implementation: Implementation) -> tuple[Implementation, Head, Row]:
        def head_with(option: Option) -> Head:
            return implementation.build(option, work.counts, wte, work.train_file.tokens)

        def sampler_with(option: Option) -> Sampler:
            head = head_with(option)
            return sampler(implementation, head, head, hidden, targets, place)

        option, tried = tune(implementation.options_on(device.type), sampler_with, 2)
        return implementation, head_with(option), {"head": implementation.name, **tried}

    chosen = {i.name: tuned(i) for i in work.implementations}
    samplers = {n: sampler(i, head, i.forward(head), hidden, targets, place) for n, (i, head, _) in chosen.items()}
    session = work.interleave(samplers)
    hidden.grad = wte.grad = None
    rows = []
    for name, timing in session.timings.items():
        implementation, head, row = chosen[name]
        with implementation.running(), place.autocast():
            memory = memory_columns(head, targets, wte, implementation.forward(head))
        row |= timing.columns("forward_ms") | timing.columns("ms")
        flops = 3.0 * head.flops_per_token() * n_tokens  # by formula, and as a share of the speed of a matrix product
        row |= {"flops": flops, "gemm_share": flops / (row["ms"] / 1000) / session.gemm_flops_per_sec()}
        rows.append(row | session.columns(name) | memory | check_columns(implementation, head, targets, place))
    return with_ratios(rows)


def sampler(
    implementation: Implementation, head: Head, forward: Any, hidden: Tensor, targets: Tensor, place: Place
) -> Sampler:
    """Return a sampler that times a forward pass without gradients, and a forward and backward pass.

    `forward` is the head or its compiled form, `hidden` is (N, D) and `targets` is (N,).
    """

    def forget_gradients() -> None:
        for parameter in [hidden, *head.parameters()]:
            parameter.grad = None

    def forward_only() -> None:
        with torch.no_grad(), place.autocast():
            forward(hidden, targets)

    def both() -> None:
        forget_gradients()
        with place.autocast():
            loss = forward(hidden, targets).nll
        loss.backward()

    def sample() -> dict[str, float]:
        with implementation.running():
            figures = {"forward_ms": place.timed(forward_only), "ms": place.timed(both)}
        forget_gradients()
        return figures

    return sample


def memory_columns(head: Head, targets: Tensor, wte: Tensor, forward: Any = None) -> Row:
    """Return the peak and the floor of memory in bytes, and the number of parameters.

    The peak counts states, weights and their gradients, also those of a tied table. The ratio leaves out the tied table
    and its gradient on both sides, because the input embedding needs them anyway. `forward` is the head in its compiled
    form, if it is compiled.
    """
    n_tokens, n_embd = targets.numel(), head.n_embd
    shape, device = (n_tokens, n_embd, head.vocab_size), targets.device
    forward = head if forward is None else forward
    if forward is not head:
        measure_head_peak_gib(forward, *shape, device, targets)  # compiling allocates
    peak = round(measure_head_peak_gib(forward, *shape, device, targets) * GIB)
    tied = any(p is wte for p in head.parameters())
    table = (wte.numel() + head.gradient_rows() * n_embd) * FLOAT_BYTES if tied else 0
    own = sum(p.numel() for p in head.parameters() if p is not wte)
    floor = floor_bytes(n_tokens, n_embd, own, head.logits_per_token())
    return {
        "peak_bytes": peak,
        "tied_table_bytes": table,
        "floor_bytes": floor,
        "peak_over_floor": (peak - table) / floor,
        "params_own": own,
    }


def floor_bytes(n_tokens: int, n_embd: int, own_params: int, logits_per_token: float) -> int:
    """Return the bytes that any head needs: states, weights, the gradients of both, and one chunk of logits.

    The chunk has 256 rows of as many logits as the head computes per token, G + S for a grouped one.
    """
    chunk = min(CHUNK, n_tokens) * logits_per_token
    return round(FLOAT_BYTES * (2 * n_tokens * n_embd + 2 * own_params + chunk))


def with_ratios(rows: list[Row]) -> list[Row]:
    """Add the speedup and the memory ratio over the plain dense head to each row."""
    dense = next((row for row in rows if row["head"] == BASELINE), None)
    if dense:
        for row in rows:
            row["speedup_forward"] = dense["forward_ms"] / row["forward_ms"]
            row["speedup"] = dense["ms"] / row["ms"]
            row["memory_ratio"] = dense["peak_bytes"] / row["peak_bytes"]
    return rows
