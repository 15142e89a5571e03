"""Operators that compute their gradients with the loss, and keep those instead of logits.

The gradients of a loss are known once its softmax is: (p - 1 at the target) times the inputs. So a loss can be computed
a chunk of rows at a time, and no (N, C) tensor is kept for the backward pass. That pass only multiplies the saved
gradients by the gradient of the loss, a scalar.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def register_saved_gradients(operator: Any, n_values: int, n_gradients: int) -> None:
    """Register the backward pass of an operator that returns its loss, further values, and its gradients.

    The operator may return one list. Its second input may be a list of tensors. An input that has no gradient, and an
    empty tensor in such a list, have an output without elements.

    Args:
        operator: of `torch.library.custom_op`. The first output is the loss; the other values have no gradient.
        n_values: outputs before the gradients.
        n_gradients: the outputs after the values are the gradients of as many first inputs.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.given = [tensor is not None for tensor in inputs[:n_gradients]]
        ctx.n_constant, ctx.in_list = len(inputs) - n_gradients, isinstance(inputs[1], list)
        ctx.set_materialize_grads(False)  # no zeros for the outputs without a gradient
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[n_values:])

    def backward(ctx: Any, *d_outputs: Any) -> tuple[Any, ...]:
        d_loss = d_outputs[0][0] if isinstance(d_outputs[0], list) else d_outputs[0]
        gradients: list[Any] = list(scale_saved(ctx.saved_tensors, d_loss))
        if ctx.in_list:
            gradients = [gradients[0], gradients[1:]]
        own = [gradient if given else None for gradient, given in zip(gradients, ctx.given, strict=True)]
        return *own, *[None] * ctx.n_constant

    operator.register_autograd(backward, setup_context=save)


def empty_gradients(keep: bool, *inputs: Tensor) -> list[Tensor]:
    """Return an uninitialised tensor for the gradient of each input, without elements where it is not kept."""
    return [tensor.new_empty(tensor.shape if keep else 0) for tensor in inputs]


def scale_saved(saved: Sequence[Tensor], scale: Tensor | None) -> Sequence[Tensor | None]:
    """Return `scaled` gradients; None where the loss that they were saved with has no gradient."""
    return [None] * len(saved) if scale is None else scaled(saved, scale)


def scaled(saved: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """Return saved gradients of a scalar loss, times the gradient of that scalar.

    They are overwritten if the graph is about to be freed, since nobody can ask for them again. Otherwise a backward
    pass would hold each of them twice.

    Raises:
        RuntimeError: a derivative of the gradients themselves is wanted. They have none.
    """
    if torch.is_grad_enabled() and get_proxy_mode() is None:
        raise RuntimeError("this loss has first derivatives alone; head.log_prob(hidden) has all of them")
    keeps_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    last = not keeps_graph() and get_proxy_mode() is None  # a graph that is being traced plans its own memory
    factors = [scale.to(gradient.dtype) for gradient in saved]
    return [g.mul_(f) if last else g * f for g, f in zip(saved, factors, strict=True)]
