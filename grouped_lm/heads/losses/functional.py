"""Functions of tensors that all losses share, the result of a loss, and gradients that are saved with it.

Letters: N tokens, D width, V vocabulary, C classes of a softmax.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from grouped_lm.config import IGNORE_INDEX


@dataclass(slots=True)
class HeadLoss:
    """Negative log-likelihood in nats and its parts; scalars, or shaped like the targets for reduction="none"."""

    nll: Tensor
    """-log p(token) = group_nll + token_nll, exactly."""
    group_nll: Tensor | None = None
    """-log p(group); None for heads without groups. The parts have gradients under reduction="none" alone."""
    token_nll: Tensor | None = None
    """-log p(token | group)."""
    group_correct: Tensor | None = None
    """Targets whose group is the likeliest one; given with accuracy=True."""
    token_correct: Tensor | None = None
    """Targets that are the likeliest token of their own group."""
    extra: Tensor | None = None
    """Label smoothing and z-loss, which training adds to `nll`; None without them."""

    def objective(self) -> Tensor:
        """Return the quantity that training minimises: nll, plus `extra` if there is one."""
        return self.nll if self.extra is None else self.nll + self.extra

    def backward(self) -> None:
        """Compute the gradients of `objective`, as `Tensor.backward` does."""
        self.objective().backward()

    def over(self, counted: Tensor) -> "HeadLoss":
        """Return the means of sums: every loss divided by the () number of targets that count."""

        def mean(part: Tensor | None) -> Tensor | None:
            return None if part is None else part / counted

        parts = mean(self.group_nll), mean(self.token_nll), self.group_correct, self.token_correct, mean(self.extra)
        return HeadLoss(self.nll / counted, *parts)


def which_count(targets: Tensor) -> Tensor:
    """Return true at targets that are not IGNORE_INDEX, as int64: in uint8 the id 156 equals -100 for torch."""
    return targets.long() != IGNORE_INDEX


def reduce_nll(nll: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return per-token losses as they are, their sum, or their mean over the targets that count.

    Raises:
        ValueError: reduction is not mean, sum or none.
    """
    if reduction == "none":
        return nll
    if reduction == "sum":
        return nll.sum()
    if reduction == "mean":
        return nll.sum() / which_count(targets).sum().clamp_min(1)  # 0, not NaN, where none counts
    raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")


_static_sizes = False


def set_static_sizes(needed: bool) -> None:
    """Let losses have tensors whose sizes follow from those of the inputs alone, as a CUDA graph needs them."""
    global _static_sizes
    _static_sizes = needed


def static_sizes() -> bool:
    """Return whether `set_static_sizes` asked for it. It costs rows that count for nothing."""
    return _static_sizes


def may_look(values: Tensor) -> bool:
    """Return whether reading numbers is cheap: on a CPU, with nobody tracing. A GPU would wait for them."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(values)


def flatten(hidden: Tensor, targets: Tensor, n_embd: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return (N, D) states and (N,) targets of (..., D) states and (...) targets.

    The values of the targets are checked where that is cheap (`may_look`).

    Raises:
        TypeError: the targets are no tensor of integers.
        ValueError: the shapes do not match, or a target is outside [0, V) and not IGNORE_INDEX.
    """
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"targets must be a tensor of int64 ids, got {type(targets).__name__}: wrap it in torch.as_tensor(targets)"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be int64 ids, got {targets.dtype}: call targets.long() if they are ids")
    if hidden.shape[-1:] != (n_embd,):
        raise ValueError(
            f"hidden must have shape (..., {n_embd}), as the head was built with n_embd={n_embd}, "
            f"got {tuple(hidden.shape)}"
        )
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and targets {tuple(targets.shape)} do not match: "
            f"targets must have shape {tuple(hidden.shape[:-1])}"
        )
    flat = targets.reshape(-1).long()
    if may_look(flat) and flat.numel():
        low, high = (int(value) for value in flat.masked_fill(flat == IGNORE_INDEX, 0).aminmax())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"a target is {wrong}: ids must be in [0, {vocab_size}), and {IGNORE_INDEX} marks what does not count"
            )
    return hidden.reshape(-1, n_embd), flat


def classify(logits: Tensor, classes: Tensor, counted: Tensor, accuracy: bool) -> tuple[Tensor, Tensor | None]:
    """Return (N,) cross entropies, zero where not counted, and with `accuracy` the rows whose class is the likeliest.

    The logits are (N, C), in fp32 or finer; the classes are in [0, C) where counted.
    """
    picked = classes.masked_fill(~counted, IGNORE_INDEX)
    nll = F.cross_entropy(logits, picked, ignore_index=IGNORE_INDEX, reduction="none")
    return nll, (logits.argmax(-1) == classes) & counted if accuracy else None


def two_step_loss(
    targets: Tensor,
    reduction: str,
    group: tuple[Tensor, Tensor | None],
    token: tuple[Tensor, Tensor | None],
    extra: Tensor | None = None,
) -> HeadLoss:
    """Return the loss of a head of two steps for targets of any shape.

    `group` and `token` are (N,) losses and hits of both steps, as `classify` returns them. They may be sums already,
    unless the reduction is none. The parts have gradients under reduction none alone: a summed loss comes from one
    operator that has the gradient of both.
    """

    def finish(values: Tensor) -> Tensor:
        return reduce_nll(values.view(targets.shape) if values.ndim else values, targets, reduction)

    def count(hits: Tensor | None) -> Tensor | None:
        if hits is None:
            return None
        return hits.view(targets.shape) if reduction == "none" else hits.sum()

    return HeadLoss(
        nll=finish(group[0] + token[0]),
        group_nll=finish(group[0] if reduction == "none" else group[0].detach()),
        token_nll=finish(token[0] if reduction == "none" else token[0].detach()),
        group_correct=count(group[1]),
        token_correct=count(token[1]),
        extra=None if extra is None else finish(extra),
    )


def at_least_fp32(logits: Tensor) -> Tensor:
    """Return fp16 and bf16 logits as fp32: a softmax in less precision loses digits that the loss shows."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def working_dtype(states: Tensor) -> torch.dtype:
    """Return the type of matrix products of these states: autocast's where that is on, but fp64 stays fp64."""
    kind = states.device.type
    casts = torch.is_autocast_enabled(kind) and states.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else states.dtype


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of softmaxes and sums where matrix products are in `dtype`: fp32 for fp16 and bf16."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def pick(table: Tensor, ids: Tensor) -> Tensor:
    """Return the rows of a (C, D) table, or the numbers of (C,) biases, at (N,) ids.

    An id may be there often. The sum of its gradients is computed in the exact type; torch takes that of the table.
    """
    exact = table.to(exact_dtype(table.dtype))
    return (exact[ids] if table.ndim == 1 else F.embedding(ids, exact)).to(table.dtype)


def at_once(states: Tensor, weight: Tensor) -> bool:
    """Return whether a loss may compute both steps in one node, reading numbers as it goes: fp32 or fp64 on a CPU."""
    return may_look(states) and weight.dtype in (torch.float32, torch.float64)


def register_saved_gradients(operator: Any, n_values: int, n_gradients: int) -> None:
    """Register the backward pass of an operator that computes its gradients with the loss, and keeps those.

    The gradients of a loss are known once its softmax is: (p - 1 at the target) times the inputs. So a loss can be
    computed a chunk of rows at a time, and no (N, C) tensor is kept for the backward pass. That pass only multiplies
    the saved gradients by the gradient of the loss, a scalar.

    Args:
        operator: of `torch.library.custom_op`. Its outputs are the loss, further values, and the gradients.
        n_values: outputs before the gradients. Those after the loss have no gradient.
        n_gradients: the outputs after the values are the gradients of as many first inputs. The one of an input that
            is None has no elements. They may be in a finer type than the inputs.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:n_gradients]]
        ctx.n_constant = len(inputs) - n_gradients
        ctx.set_materialize_grads(False)  # no zeros for the outputs without a gradient
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[n_values:])

    def backward(ctx: Any, d_loss: Tensor | None, *_: None) -> tuple[Any, ...]:
        gradients = scale_saved(ctx.saved_tensors, d_loss)
        return *as_types(gradients, ctx.dtypes), *[None] * ctx.n_constant

    operator.register_autograd(backward, setup_context=save)


def empty_gradients(keep: bool, states: Tensor, *weights: Tensor) -> list[Tensor]:
    """Return an uninitialised tensor for the gradient of each input, without elements where it is not kept.

    Those of weights are sums over chunks. They have the exact type: the sums would stop to grow in bf16 after some 256
    chunks, and be infinite in fp16.
    """
    kept = [tensor.new_empty(tensor.shape if keep else 0, dtype=exact_dtype(tensor.dtype)) for tensor in weights]
    return [states.new_empty(states.shape if keep else 0), *kept]


def as_types(gradients: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]) -> list[Tensor | None]:
    """Return gradients in the types of their inputs; None where there is no gradient or no input."""
    pairs = zip(gradients, dtypes, strict=True)
    return [None if gradient is None or dtype is None else gradient.to(dtype) for gradient, dtype in pairs]


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
    last = may_overwrite()
    factors = [scale.to(gradient.dtype) for gradient in saved]
    return [g.mul_(f) if last else g * f for g, f in zip(saved, factors, strict=True)]


def may_overwrite() -> bool:
    """Return whether a backward pass may overwrite saved gradients: its graph is about to be freed.

    Raises:
        RuntimeError: a derivative of the gradients themselves is wanted. They have none.
    """
    if torch.is_grad_enabled() and get_proxy_mode() is None:
        raise RuntimeError("this loss has first derivatives alone; head.log_prob(hidden) has all of them")
    keeps_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return not keeps_graph() and get_proxy_mode() is None  # a graph that is being traced plans its own memory
