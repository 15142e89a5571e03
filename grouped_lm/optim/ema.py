"""An exponential moving average of the weights (`optim.ema`), for validation, evaluation and export.

The average is part of the optimizer's state, so that checkpoints have it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from grouped_lm.distributed.process_group import local_tensor

EMA = "ema"
"""Key of the average in the state of a parameter."""


def decay_at(decay: float, step: int) -> float:
    """Return the decay after `step` steps: less at the start, so that the first weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float, step: int) -> None:
    """Move the averages to the weights: average = d average + (1 - d) weight, with d of `decay_at`.

    A parameter that never had a gradient has no average, as it did not change.
    """
    pairs = [(parameter, state) for parameter, state in optimizer.state.items() if state]
    for parameter, state in pairs:
        if EMA not in state:
            state[EMA] = parameter.detach().clone()
    if pairs:
        averages = [local_tensor(state[EMA]) for _, state in pairs]
        weights = [local_tensor(parameter.detach()) for parameter, _ in pairs]
        torch._foreach_lerp_(averages, weights, 1 - decay_at(decay, step))


@contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put the averages in place of the weights inside the block, where there are some.

    Values change places, not tensors: a sharded weight has its numbers in a tensor of its own.
    """
    swapped = [(parameter, state) for parameter, state in optimizer.state.items() if EMA in state]

    @torch.no_grad()
    def swap() -> None:
        for parameter, state in swapped:
            weight, average = local_tensor(parameter.detach()), local_tensor(state[EMA])
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)

    swap()
    try:
        yield
    finally:
        swap()
