"""`gvc bench heads`: time and memory of the output layer alone, forward and backward.

Letters: N tokens, D width, V vocabulary, e bytes per number.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.bench.checks import check_columns
from grouped_lm.bench.implementations import BASELINE, Implementation, Option, forget_compiled, tune
from grouped_lm.bench.results import Cell, Row
from grouped_lm.bench.timing import Place, Sampler, first_line
from grouped_lm.bench.workload import Workload, draw_ids, say, zipf_counts
from grouped_lm.heads import Head
from grouped_lm.measure.memory import GIB, measure_head_peak_gib

FLOAT_BYTES = 4
CHUNK = 256
"""Rows of logits that the floor of memory counts. Smaller chunks need less, and are slower."""


def heads_cells(work: Workload) -> list[Cell]:
    """Return a cell per N and D, then one per further shape. All implementations take turns in it."""
    grid = work.settings.heads
    first = [(n, d, work.vocab_size) for d in grid.n_embd for n in grid.n_tokens]
    further = [(n, d, v) for n, d, v in grid.shapes if (n, d, v) not in first]
    return [
        ({"n_tokens": n, "n_embd": d, "vocab_size": v}, partial(measure_cell, work, (n, d, v), (n, d, v) in first))
        for n, d, v in first + further
    ]


def measure_cell(work: Workload, shape: tuple[int, int, int], compiles: bool) -> Iterator[Row]:
    """Give a row per implementation: choose options, time all in turn, then check and measure memory one by one.

    `shape` is N, D and V. A V that is not the tokenizer's has no text: the counts of its tokens follow Zipf's law.
    Unless it `compiles`, implementations that do are left out: compiling takes a quarter of a minute for each.
    """
    n_tokens, n_embd, vocab_size = shape
    torch.manual_seed(work.settings.seed)
    chosen = list(fitting(work.implementations, n_tokens, compiles))
    forget_compiled(chosen)
    own = vocab_size == work.vocab_size
    counts, tokens = (work.counts, work.train_file.tokens) if own else (zipf_counts(vocab_size), None)
    place, device = work.place, work.place.device
    hidden = torch.randn(n_tokens, n_embd).to(device).requires_grad_()
    targets = draw_ids(counts, n_tokens, work.settings.seed).to(device)
    wte = nn.Parameter(0.02 * torch.randn(vocab_size, n_embd).to(device))

    def tuned(implementation: Implementation) -> tuple[Implementation, Head, Row]:
        def head_with(option: Option) -> Head:
            return implementation.build(option, counts, wte, tokens)

        def sampler_with(option: Option) -> Sampler:
            head = head_with(option)
            return sampler(implementation, head, head, hidden, targets, place)

        option, tried = tune(implementation.options_on(device.type), sampler_with, 2)
        return implementation, head_with(option), {"head": implementation.name, **tried}

    heads = {i.name: tuned(i) for i in chosen}
    samplers = {n: sampler(i, head, i.forward(head), hidden, targets, place) for n, (i, head, _) in heads.items()}
    session = work.interleave(samplers)
    hidden.grad = wte.grad = None
    dense: Row | None = None
    for name, timing in session.timings.items():
        implementation, head, row = heads[name]
        row |= timing.columns("forward_ms") | timing.columns("ms")
        flops = 3.0 * head.flops_per_token() * n_tokens  # by formula, and as a share of the speed of a matrix product
        row |= {"flops": flops, "gemm_share": flops / (row["ms"] / 1000) / session.gemm_flops_per_sec()}
        row |= session.columns(name)
        row["option"] = implementation.padding(vocab_size) or row["option"]
        try:
            with implementation.running(), place.autocast():
                row |= memory_columns(head, targets, wte, implementation.forward(head))
            row |= check_columns(implementation, head, targets, place)
        except Exception as error:
            if not implementation.gpu_only:
                raise
            say(f"{name} was timed, but not checked: {first_line(error)}")
        dense = row if name == BASELINE else dense
        yield with_ratios(row, dense)


def fitting(implementations: Sequence[Implementation], n_tokens: int, compiles: bool) -> Iterator[Implementation]:
    """Give the implementations that take N tokens, and print why others are left out."""
    for implementation in implementations:
        if n_tokens % implementation.tokens_multiple:
            needed = f"a multiple of {implementation.tokens_multiple}"
            say(f"{implementation.name} is left out: N must be {needed}, got {n_tokens}")
        elif compiles or not implementation.compiled:
            yield implementation


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


def with_ratios(row: Row, dense: Row | None) -> Row:
    """Add the speedup and the memory ratio over the plain dense head, the first row of a cell."""
    if dense is not None:
        row["speedup_forward"] = dense["forward_ms"] / row["forward_ms"]
        row["speedup"] = dense["ms"] / row["ms"]
        row["memory_ratio"] = dense["peak_bytes"] / row["peak_bytes"] if "peak_bytes" in row else None
    return row
