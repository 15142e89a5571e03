"""Whether a head computes what it says, where it is measured: against its own definition in fp64.

Letters: N tokens, D width, V vocabulary.
"""

import copy

import torch
from torch import Tensor

from grouped_lm.bench.competitors import Competitor
from grouped_lm.bench.place import Place
from grouped_lm.bench.results import Row
from grouped_lm.errors import InexactError
from grouped_lm.heads import Head

ROWS = 64
"""States that are compared: the definition makes V numbers for each, in fp64."""
TOLERANCE = {"float32": (2e-5, 1e-4), "bfloat16": (0.01, 0.06)}
"""Nats of the mean loss, and the largest error of a gradient over its own norm, by the type of matrix products."""


def check_columns(competitor: Competitor, head: Head, targets: Tensor, place: Place) -> Row:
    """Return how far loss and gradients are from those of the log-probabilities of all V tokens in fp64.

    `exact` says whether both are within `TOLERANCE`. Heads that are trained by a draw are judged as in evaluation.
    """
    training, targets = head.training, targets[:ROWS]
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(targets.numel(), head.n_embd, generator=draw).to(targets.device).requires_grad_()
    exact, exact_states = copy.deepcopy(head).double().eval(), states.detach().double().requires_grad_()
    truth = -exact.log_prob(exact_states).gather(1, targets[:, None]).mean()
    with competitor.running():
        with place.autocast():
            loss = head.eval()(states, targets).nll
        found = torch.autograd.grad(loss, [states, *head.parameters()], allow_unused=True)
    head.train(training)
    wanted = torch.autograd.grad(truth, [exact_states, *exact.parameters()], allow_unused=True)
    nll_error = (loss - truth).abs().item()
    grad_error = max(error_of(a, b) for a, b in zip(found, wanted, strict=True))
    nll_bound, grad_bound = TOLERANCE[place.dtype]
    within = nll_error <= nll_bound and grad_error <= grad_bound
    return {"nll_error": nll_error, "grad_error": grad_error, "exact": within}


def error_of(found: Tensor | None, wanted: Tensor | None) -> float:
    """Return the norm of the difference over the norm of `wanted`; absent is zero."""
    if found is None or wanted is None:
        there = found if wanted is None else wanted
        return 0.0 if there is None or not there.any() else 1.0
    found, norm = found.to_dense() if found.is_sparse else found, wanted.norm().item()
    return ((found - wanted).norm() / norm).item() if norm else float(found.norm() > 0)


def refuse_inexact(rows: list[Row], ours: set[str]) -> None:
    """Raise where a head of ours is not exact; that of a peer is for its row to say.

    Raises:
        InexactError: with the first of them.
    """
    for row in rows:
        if row.get("exact") is False and row["head"] in ours:
            raise InexactError(
                f"{row['head']} is not exact at N {row['n_tokens']}, D {row['n_embd']}, device={row['device']} "
                f"dtype={row['dtype']}: loss off by {row['nll_error']:.2g} nats, a gradient by "
                f"{row['grad_error']:.2g} of its norm; the rows are written all the same"
            )
