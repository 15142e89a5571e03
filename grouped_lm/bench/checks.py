"""Check where a head is measured that its loss and gradients equal its own definition in fp64.

Letters: N tokens, D width, V vocabulary.
"""

import copy
import math

import torch
from torch import Tensor

from grouped_lm.bench.implementations import Implementation
from grouped_lm.bench.results import Row
from grouped_lm.bench.timing import Place
from grouped_lm.config import IGNORE_INDEX
from grouped_lm.errors import InexactError
from grouped_lm.heads import Head
from grouped_lm.heads.sampled import SampledHead

ROWS, ROWS_AT_ONCE = 300, 50
"""States to compare, more than a chunk has on a CPU, and how many at once. Each needs V fp64 numbers."""
TOLERANCE = {"float32": (2e-5, 1e-4), "bfloat16": (0.01, 0.06)}
"""Allowed error of the mean loss in nats, and of a gradient over its norm, by the dtype of matrix products."""


def check_columns(implementation: Implementation, head: Head, targets: Tensor, place: Place) -> Row:
    """Return the errors of loss and gradients against the log-probabilities of all V tokens in fp64.

    The head is run as when it is timed, on N states. `ROWS` of them, evenly spread, count. The other targets are
    ignored. `exact` is whether both errors are within `TOLERANCE`; NaN counts as infinite. Sampled softmax is
    checked as in evaluation.
    """
    n_tokens, n_rows = targets.numel(), min(ROWS, targets.numel())
    rows = torch.arange(n_rows, device=targets.device) * n_tokens // n_rows
    given = torch.full_like(targets, IGNORE_INDEX).index_copy(0, rows, targets[rows])
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(n_tokens, head.n_embd, generator=draw).to(targets.device).requires_grad_()
    training = head.training
    if isinstance(head, SampledHead):
        head.eval()
    with implementation.running():
        with place.autocast():
            loss = implementation.forward(head)(states, given).nll
        gradients = torch.autograd.grad(loss, [states, *head.parameters()], allow_unused=True)
    head.train(training)
    exact_loss, exact_gradients = loss_by_definition(head, states.detach(), targets, rows)
    nll_error = finite_or_inf((loss - exact_loss).abs().item())
    grad_error = max(error_of(a, b) for a, b in zip(gradients, exact_gradients, strict=True))
    nll_bound, grad_bound = TOLERANCE[place.dtype]
    within = nll_error <= nll_bound and grad_error <= grad_bound
    return {"nll_error": nll_error, "grad_error": grad_error, "exact": within}


def loss_by_definition(head: Head, states: Tensor, targets: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Return the mean of -head.log_prob in fp64, and its gradients by all states and the head's parameters.

    `states` are (N, D) and `targets` (N,). Only the indices in `rows` count.
    """
    exact, exact_states = copy.deepcopy(head).double().eval(), states.double().requires_grad_()
    total = exact_states.new_zeros(())
    for some in rows.split(ROWS_AT_ONCE):
        loss = -exact.log_prob(exact_states[some]).gather(1, targets[some, None]).sum() / len(rows)
        loss.backward()
        total += loss.detach()
    return total, [exact_states.grad, *(parameter.grad for parameter in exact.parameters())]


def error_of(value: Tensor | None, exact: Tensor | None) -> float:
    """Return the norm of the difference over the norm of `exact`, or 1 if that is zero. None means zero."""
    one, other = (torch.zeros(()) if tensor is None else tensor.to_dense() for tensor in (value, exact))
    off, norm = (one - other).norm().item(), other.norm().item()
    return finite_or_inf(off / (norm or off or 1.0))


def finite_or_inf(error: float) -> float:
    """Return the error, or infinity for NaN, which would pass every comparison with a bound."""
    return error if math.isfinite(error) else math.inf


def refuse_inexact(rows: list[Row], ours: set[str]) -> None:
    """Raise `InexactError` for one of our own heads. Other libraries may be inexact, and their rows say so."""
    for row in rows:
        if row.get("exact") is False and row["head"] in ours:
            raise InexactError(
                f"{row['head']} is not exact at N {row['n_tokens']}, D {row['n_embd']}, device={row['device']} "
                f"dtype={row['dtype']}: loss off by {row['nll_error']:.2g} nats, a gradient by "
                f"{row['grad_error']:.2g} of its norm; the rows are written all the same"
            )
