"""`gvc bench heads`: time and memory of the output layer alone, forward and backward.

Letters: N tokens, D width, V vocabulary, e bytes per number.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.bench.checks import check_columns
from grouped_lm.bench.implementations import (
    BASELINE,
    Implementation,
    Option,
    describe_option,
    describe_tuning,
    forget_compiled,
)
from grouped_lm.bench.place import Place
from grouped_lm.bench.results import Row
from grouped_lm.bench.timing import Sampler, Session, interleave, quickest
from grouped_lm.bench.workload import Workload, say_too_large
from grouped_lm.heads import Head
from grouped_lm.measure.memory import GIB, measure_head_peak_gib

FLOAT_BYTES = 4
CHUNK = 256
"""Rows of logits that the floor of memory counts. Smaller chunks need less, and are slower."""
Cell = tuple[Row, Callable[[], list[Row]]]


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
    targets = work.targets(n_tokens).to(device)
    wte = nn.Parameter(0.02 * torch.randn(work.vocab_size, n_embd).to(device))

    def build(implementation: Implementation, option: Option) -> Head:
        return implementation.build(option, n_embd, work.vocab_size, work.counts, wte, work.train_file.tokens)

    chosen: dict[str, tuple[Implementation, Option, Head, dict[str, float]]] = {}
    for implementation in work.implementations:
        options = {describe_option(option): option for option in implementation.options_on(device.type)}
        samplers = {
            name: sampler(implementation, build(implementation, o), hidden, targets, place, plain=True)
            for name, o in options.items()
        }
        best, tried = quickest(samplers, "ms")
        chosen[implementation.name] = implementation, options[best], build(implementation, options[best]), tried
    session = interleave(
        {name: sampler(c, head, hidden, targets, place) for name, (c, _, head, _) in chosen.items()},
        work.settings.meter,
        place.calibrate,
    )
    for parameter in [hidden, wte]:
        parameter.grad = None
    say_too_large(session)
    rows = []
    for name in session.timings:
        implementation, option, head, tried = chosen[name]
        row = {"head": name, "option": describe_option(option), "tried": describe_tuning(tried)}
        with implementation.running(), place.autocast():
            memory = memory_columns(head, targets, wte, implementation.forward(head))
        speed = speed_columns(session, name, head, n_tokens)
        rows.append(row | speed | memory | check_columns(implementation, head, targets, place))
    return with_ratios(rows)


def sampler(
    implementation: Implementation, head: Head, hidden: Tensor, targets: Tensor, place: Place, plain: bool = False
) -> Sampler:
    """Return a sampler that times a forward pass without gradients, and a forward and backward pass.

    Args:
        implementation: How the head is run.
        head: The head.
        hidden: (N, D).
        targets: (N,).
        place: The device and dtype.
        plain: Do not compile.
    """
    forward: Any = head if plain else implementation.forward(head)

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


def speed_columns(session: Session, name: str, head: Head, n_tokens: int) -> Row:
    """Return times, FLOPs by formula, and their rate as a share of the speed of a matrix product."""
    timing = session.timings[name]
    row: Row = timing.columns("forward_ms") | timing.columns("ms")
    flops = 3.0 * head.flops_per_token() * n_tokens
    share = flops / (row["ms"] / 1000) / session.gemm_flops_per_sec()
    return row | {"flops": flops, "gemm_share": share} | session.columns(name)


def memory_columns(head: Head, targets: Tensor, wte: Tensor, forward: Any = None) -> Row:
    """Return the peak and the floor of memory in bytes, and the number of parameters.

    The peak counts states, weights and their gradients, also those of a tied table. The ratio leaves out the tied table
    and its gradient on both sides, because the input embedding needs them anyway. `forward` is the compiled head, if it
    is compiled.
    """
    n_tokens, n_embd = targets.numel(), head.n_embd
    shape, device = (n_tokens, n_embd, head.vocab_size), targets.device
    if forward not in (None, head):
        measure_head_peak_gib(forward, *shape, device, targets)  # compiling allocates
    peak = round(measure_head_peak_gib(head if forward is None else forward, *shape, device, targets) * GIB)
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
    if dense is None:
        return rows
    for row in rows:
        row["speedup_forward"] = dense["forward_ms"] / row["forward_ms"]
        row["speedup"] = dense["ms"] / row["ms"]
        row["memory_ratio"] = dense["peak_bytes"] / row["peak_bytes"]
    return rows
