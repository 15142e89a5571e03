"""`grouped_lm.compress`: a compressed head in the place of the output layer of anybody's causal language model.

Letters: B batch, T sequence, N states, D width, V vocabulary, G groups, S slots per group.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import GroupingConfig, check_range
from grouped_lm.errors import ConfigError
from grouped_lm.heads import DEFAULT_HEAD, Head, HeadLoss, ShortlistHead, TwoLevelHead, build_head
from grouped_lm.hf.files import new_folder, write_card, write_gvc_config, write_weights
from grouped_lm.hf.names import head_to_hf

RANDOM_TOKENS = 4096
"""Tokens drawn at random whose states the groups are fitted on where no text is given."""
HELD_OUT = 8
"""One state in so many, the last ones of the text, is kept for measuring the divergence alone."""
RIDGE = 1e-4
"""Share of the states' mean variance that is added to it, so that directions nobody uses stay small."""
DISTILL_ROWS = 256
"""States per step of distillation: V-wide logits of teacher and student exist for these alone."""
SPREAD = 0.01
"""Standard deviation, over that of the fitted directions, by which several ones of a group start apart."""


@dataclass(frozen=True)
class CompressionReport:
    """What compression changed. KL is the mean of KL(model || compressed) in nats, on states kept out of the fit."""

    kl_before: float
    """Of the head as `build_head` returns it."""
    kl_fitted: float
    """After the fit to the output layer."""
    kl_after: float
    """After distillation too."""
    parameters_before: int
    """Of the whole model; a tied table counts once."""
    parameters_after: int
    bytes_before: int
    """Of all parameters and buffers."""
    bytes_after: int
    logits_before: int
    """Numbers computed per token for the training loss: V."""
    logits_after: float

    def __str__(self) -> str:
        mib_before, mib_after = (size / 2**20 for size in (self.bytes_before, self.bytes_after))
        return (
            f"KL(model || compressed): {self.kl_before:.4f} nats with a new head, {self.kl_fitted:.4f} fitted, "
            f"{self.kl_after:.4f} at the end\n"
            f"parameters: {self.parameters_before:,} before, {self.parameters_after:,} after\n"
            f"memory of the weights: {mib_before:.2f} MiB before, {mib_after:.2f} MiB after\n"
            f"logits per token of the training loss: {self.logits_before:,} before, {self.logits_after:,.0f} after"
        )


class LogProbs(nn.Module):
    """The new output layer: hidden states to (..., V) log-probabilities, which are logits too."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `head.log_prob(hidden)`."""
        return self.head.log_prob(hidden)


class CompressedLM(nn.Module):
    """A transformers model with a compressed head.

    `model` is the one that was given: it generates, and gives V-wide logits, as before. `forward` is for training: the
    exact loss without a V-wide tensor. `report` says what compression changed.
    """

    def __init__(self, model: Any, head: Head, report: CompressionReport) -> None:
        super().__init__()
        self.model, self.head, self.report = model, head, report
        # its files would be loaded with the old output layer
        model.save_pretrained = _refuse("is saved by compressed.save_pretrained(folder), not by model.save_pretrained")
        model.resize_token_embeddings = _refuse("cannot be resized: resize_token_embeddings first, then compress")

    def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> HeadLoss:
        """Return the loss of the tokens that follow, in nats.

        Args:
            input_ids: (B, T).
            labels: (B, T) ids at the same places as in `input_ids`, or IGNORE_INDEX.
            kwargs: for the body, such as attention_mask.
        """
        hidden = self.model.base_model(input_ids=input_ids, **kwargs).last_hidden_state
        return self.head(hidden[:, :-1], labels[:, 1:])

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> Path:
        """Write a checkpoint that `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads.

        Args:
            folder: returned; RunFolderError if it exists, DiskError if it cannot be written.
            tokenizer: of transformers, saved along.

        Raises:
            ConfigError: a model without position ids or attention, such as Bloom, MPT or Mamba.
        """
        target, body = Path(folder), self.model.base_model
        check_body(body)
        values, state = head_to_hf(self.head, self.model.get_input_embeddings().weight)
        values["width"] = self.head.n_embd  # that of the states may be another one
        names = {f"transformer.{name}": tensor for name, tensor in body.state_dict().items()}
        ids = {name: getattr(self.model.config, name, None) for name in ("bos_token_id", "eos_token_id")}
        with new_folder(target) as new:
            write_weights(new, names | {f"head.{name}": tensor for name, tensor in state.items()})
            dtype = str(next(body.parameters()).dtype).removeprefix("torch.")
            write_gvc_config(new, self.model.config.to_dict(), values, ids, dtype)
            if getattr(self.model, "generation_config", None) is not None:
                self.model.generation_config.save_pretrained(new)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
            card = {"title": target.name, "folder": target.name, "is_plain": False, "head": values["name"]}
            write_card(new, card | {"kind": type(self.model).__name__, "changes": str(self.report).splitlines()})
        return target


def check_body(body: Any) -> None:
    """Raise `ConfigError` for a body that `modeling_gvc.py` cannot call."""
    needed = ("num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    missing = [name for name in needed if not hasattr(body.config, name)]
    takes = inspect.signature(body.forward).parameters
    missing += [name for name in ("position_ids", "past_key_values") if name not in takes]
    if missing:
        raise ConfigError(
            f"a compressed {type(body).__name__} cannot be saved, as it has no {', '.join(missing)}: use it as it is"
        )


def _refuse(reason: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConfigError(f"a compressed model {reason}")

    return refuse


def compress(
    model: Any,
    head: Any = None,
    *,
    input_ids: Tensor | None = None,
    distill_steps: int = 0,
    lr: float = 1e-3,
    grouping: GroupingConfig | str | None = None,
    counts: Tensor | None = None,
    seed: int = 0,
) -> CompressedLM:
    """Put a compressed head in the place of a model's output layer, fitted to it, and return both.

    Heads whose tokens have rows of their own keep the layer's rows; `film` and `grouped` get the nearest ones, least
    squares over all V x D weights. Group logits are the least-squares fit to the log-sum-exp of the group's logits.

    Args:
        model: a causal LM of transformers, whose last hidden state a linear layer maps to logits. It is changed.
        head: name or config of a `shortlist` (default), `class_full`, `film` or `grouped` head.
        input_ids: (B, T) text to fit groups on and to distil with, read in one pass; None draws random tokens. The
            last eighth is kept for the report alone.
        distill_steps: steps of AdamW on the head's own weights towards the model's distribution, >= 0.
        lr: their learning rate, > 0.
        grouping: how tokens are put into groups; None is by frequency where `counts` are given, else by id.
        counts: (V,) training occurrences, which put frequent tokens in the shortlist; None takes the first ids.
        seed: of everything drawn; torch's global generator is left as it was.

    Raises:
        ConfigError: no model of transformers, an output layer that is not linear, a head of another kind, or rows that
            are longer than the model can read.
    """
    check_range("distill_steps", distill_steps, 0)
    check_range("lr", lr, 0, open_low=True)
    layer = output_layer(model)
    vocab_size, width = layer.weight.shape
    if input_ids is not None:
        _check_ids(input_ids, vocab_size, getattr(model.config, "max_position_embeddings", None))
    if grouping is None and counts is not None:
        grouping = "frequency"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = build_head(head or DEFAULT_HEAD, width, vocab_size, grouping, counts, layer.weight)
        built = built.to(device=layer.weight.device, dtype=layer.weight.dtype)
        if input_ids is None:
            length = min(getattr(model.config, "max_position_embeddings", 256), 256)
            input_ids = torch.randint(vocab_size, (max(1, RANDOM_TOKENS // length), length))
        divergences = _fit(built, layer, _states(model, layer, input_ids.to(layer.weight.device)), distill_steps, lr)
    before = _sizes(model)
    model.set_output_embeddings(LogProbs(built))
    after, logits = _sizes(model), (vocab_size, built.logits_per_token())
    report = CompressionReport(*divergences, before[0], after[0], before[1], after[1], *logits)
    return CompressedLM(model, built, report)


def _fit(head: Head, layer: nn.Linear, hidden: Tensor, distill_steps: int, lr: float) -> tuple[float, float, float]:
    """Fit a head to a layer on (N, D) states; return the divergence before, after the fit, and after distillation."""
    held_out = hidden[-max(1, len(hidden) // HELD_OUT) :]
    states = hidden[: -len(held_out)] if len(hidden) > 1 else hidden
    before = mean_kl(head, held_out, layer)
    with torch.no_grad():
        head.fit(layer.weight, layer.bias)
        fit_groups(head, states, layer)
    fitted = mean_kl(head, held_out, layer)
    if not distill_steps:
        return before, fitted, fitted
    distill(head, states, layer, distill_steps, lr)
    return before, fitted, mean_kl(head, held_out, layer)


def output_layer(model: Any) -> nn.Linear:
    """Return the linear layer that makes a model's logits; ConfigError without one."""
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "base_model"):
        given = repr(model) if isinstance(model, str | None) else type(model).__name__
        load = f"AutoModelForCausalLM.from_pretrained({model!r})" if isinstance(model, str) else "AutoModelForCausalLM"
        raise ConfigError(f"compress needs a loaded causal language model of transformers, got {given}: use {load}")
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or model.base_model is model:
        raise ConfigError(f"only a linear output layer can be compressed, {type(model).__name__} has {layer}")
    return layer


def _check_ids(input_ids: Any, vocab_size: int, longest: int | None) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        shape = tuple(getattr(input_ids, "shape", ()))
        kind = getattr(input_ids, "dtype", type(input_ids).__name__)
        raise ConfigError(f"input_ids must be a (B, T) tensor of token ids, got {kind} of shape {shape}")
    if not input_ids.numel() or int(input_ids.min()) < 0 or int(input_ids.max()) >= vocab_size:
        raise ConfigError(f"input_ids must hold ids in [0, {vocab_size}), got {input_ids.numel()} with others or none")
    length = input_ids.shape[1]
    if longest is not None and length > longest:
        raise ConfigError(f"the model reads rows of at most {longest} tokens, got {length}: cut input_ids into rows")


@torch.no_grad()
def _states(model: Any, layer: nn.Linear, input_ids: Tensor) -> Tensor:
    """Return the (N, D) last hidden states of (B, T) ids, and leave the model in the mode that it was in."""
    was_training = model.training
    model.eval()
    hidden = model.base_model(input_ids=input_ids).last_hidden_state
    first, logits = layer(hidden[:1, :8]).float(), model(input_ids=input_ids[:1, :8]).logits.float()
    model.train(was_training)
    if (first - logits).abs().max() > 0.02 * first.abs().max() + 1e-4:  # bf16 has 8 bits
        raise ConfigError(
            f"{type(model).__name__} changes the logits after its linear output layer (a soft cap or a scale): "
            "compress cannot replace that"
        )
    return hidden.flatten(0, 1)


@torch.no_grad()
def mean_kl(head: Head, hidden: Tensor, layer: nn.Linear) -> float:
    """Return the mean over (N, D) states of KL(layer || head) in nats."""
    total = 0.0
    for rows in hidden.split(DISTILL_ROWS):
        teacher = layer(rows).float().log_softmax(-1)
        total += (teacher.exp() * (teacher - head.log_prob(rows).float())).sum().item()
    return total / len(hidden)


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, shared ones once, and the bytes of parameters and buffers."""
    parameters = list(model.parameters())
    tensors = [*parameters, *model.buffers()]
    return sum(p.numel() for p in parameters), sum(t.numel() * t.element_size() for t in tensors)


def fit_groups(head: Any, hidden: Tensor, layer: nn.Linear) -> None:
    """Fit group logits, linear in h, to the log-sum-exp of the group's token logits, over (N, D) states.

    Tokens of a shortlist keep their own logits, so the groups' must be right against those, not up to a constant.
    """
    table = head.group_members()
    if isinstance(head, ShortlistHead):
        table = table[: len(head.group_bias)]  # what is reserved is not fitted
    if not len(table):
        return
    targets = torch.cat([_group_logits(layer(rows), table) for rows in hidden.split(DISTILL_ROWS)]).double()
    if isinstance(head, TwoLevelHead):
        targets = targets - targets.mean(1, keepdim=True)  # a softmax over groups alone: a constant is free
    states = hidden.double()
    center = states.mean(0)
    spread = states - center
    gram = spread.T @ spread
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    directions = torch.linalg.solve(gram, spread.T @ (targets - targets.mean(0))).T  # (G, D)
    offsets = targets.mean(0) - directions @ center
    if isinstance(head, TwoLevelHead):
        head.group.weight.copy_(directions)
        head.group.bias.copy_(offsets)
        return
    if head.directions is None:  # the mean rows are the directions, so the best constant is the mean difference
        logits = hidden @ head.mean_rows(head.weight[head.sharing]).squeeze(1).T
        head.group_bias.copy_((targets - logits.double()).mean(0, keepdim=True).T)
        return
    directions = directions - head.mean_rows(head.weight[head.sharing]).squeeze(1)
    several = head.directions.shape[1]
    apart = torch.randn_like(head.directions) * (SPREAD * directions.std().to(head.directions.dtype))
    head.directions.copy_(directions.unsqueeze(1) + (apart if several > 1 else 0))
    head.group_bias.copy_((offsets.unsqueeze(1) - torch.tensor(float(several)).log()).expand(-1, several))


def _group_logits(logits: Tensor, table: Tensor) -> Tensor:
    inside = F.embedding(table.clamp_min(0).flatten(), logits.T).view(*table.shape, -1)  # (G, S, N)
    return inside.masked_fill((table < 0).unsqueeze(-1), -torch.inf).float().logsumexp(1).T


def distill(head: Head, hidden: Tensor, layer: nn.Linear, steps: int, lr: float) -> None:
    """Train the head's own weights, not rows it shares with `layer`, towards the layer's distribution.

    The loss is the cross entropy of the teacher's and the student's distributions, on random states of `hidden`. Fp16
    and bf16 weights are trained as fp32 copies: AdamW's numbers are too small for them.
    """
    shared = {id(parameter) for parameter in layer.parameters()}
    own = [parameter for parameter in head.parameters() if id(parameter) not in shared]
    copies = [parameter.detach().float().requires_grad_() for parameter in own]
    optimizer = torch.optim.AdamW(copies, lr=lr, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        rows = hidden[torch.randint(len(hidden), (DISTILL_ROWS,), device=hidden.device)]
        with torch.no_grad():
            teacher = layer(rows).float().softmax(-1)
        loss = -(teacher * head.log_prob(rows)).sum()  # the mean's gradients would be too small for fp16
        gradients = torch.autograd.grad(loss, own)
        for copy, gradient in zip(copies, gradients, strict=True):
            copy.grad = gradient.float() / DISTILL_ROWS
        optimizer.step()
        with torch.no_grad():
            for parameter, copy in zip(own, copies, strict=True):
                parameter.copy_(copy)
