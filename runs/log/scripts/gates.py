"""Other gates for a run with counts beside its network, trained on one text and tested on another.

    python runs/log/scripts/gates.py RUN TEXT_A TEXT_B [--tokens 73000]

RUN has prior.mix=gate. Its network is fixed. The log entry "Three tries at a better gate" of 2026-11-30 has the
figures. Letters: N tokens, D width, C tokens of the longest context, F features of a context.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.data.loader import ValidWindows
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.prior.head import Gate, MixedModel, context_features
from grouped_lm.prior.tables import take_or_zero
from grouped_lm.runs.load import load_config, load_run

BATCH, EPOCHS, LR, HELD_OUT = 256, 6, 4e-3, 16_384


@dataclass
class Scored:
    """A text with what a gate reads, and what it mixes."""

    states: Tensor  # (N, D)
    network: Tensor  # (N,) log-probabilities of the targets
    counts: Tensor  # (N, C + 1) those of the counts; column k uses contexts of at most k tokens
    features: Tensor  # (N, F)

    def first(self, n: int) -> "Scored":
        """Return the first n tokens."""
        return Scored(self.states[:n], self.network[:n], self.counts[:n], self.features[:n])


@torch.no_grad()
def score(model: MixedModel, tokenizer: Tokenizer, path: Path, n_tokens: int, block_size: int) -> Scored:
    """Return the first `n_tokens` targets of a text."""
    documents = path.read_text(encoding="utf-8").split("<|endoftext|>")
    ids = [[*tokenizer.encode(text), tokenizer.eot_id] for text in (part.strip("\n") for part in documents) if text]
    tokens = np.concatenate([np.array(own) for own in ids])[: n_tokens + 1]
    head, parts = model.head, []
    for inputs, targets in ValidWindows(tokens, block_size, 16):
        kept = targets.flatten() >= 0
        states, last = head.split(model.hidden(inputs).flatten(0, 1)[kept])
        own = targets.flatten()[kept]
        contexts = head.counts.contexts_after(last)
        ngrams = head.counts.ngrams(contexts.nodes, own.numpy())
        prob, orders = np.full(len(own), 1 / head.counts.vocab_size), []
        for k, level in enumerate(head.counts.levels):
            scale, backoff = head.counts.interpolation(k, contexts)
            prob = level.mass(take_or_zero(level.counts, ngrams[k])) * scale + backoff * prob
            orders.append(np.log(prob))
        columns = (np.stack(orders, axis=1), context_features(head.counts, contexts))
        shown = [torch.from_numpy(column).float() for column in columns]
        parts.append((states.float(), -head.head.loss(states, own, "none").nll.float(), *shown))
    return Scored(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Shares(nn.Module):
    """Shares of the network and of the counts of some orders, as a gate with any number of units."""

    def __init__(self, text: Scored, units: int, orders: list[int]) -> None:
        super().__init__()
        self.orders = orders
        self.states = nn.Linear(text.states.shape[1], units)
        self.features = nn.Linear(text.features.shape[1], units)
        self.out = nn.Linear(units, len(orders) + 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, text: Scored) -> Tensor:
        """Return the (N,) losses of the mixture."""
        shares = self.out(torch.tanh(self.states(text.states) + self.features(text.features))).log_softmax(1)
        parts = torch.cat([text.network.unsqueeze(1), text.counts[:, self.orders]], dim=1)
        return -torch.logsumexp(shares + parts, dim=1)


def mixed(gate: Gate, text: Scored, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Tensor:
    """Return the (N,) losses of the mixture that a gate of the library makes."""
    logit = gate(text.states, text.features) * scale + shift
    return -torch.logaddexp(F.logsigmoid(-logit) + text.network, F.logsigmoid(logit) + text.counts[:, -1])


def train(loss: Callable[[Scored], Tensor], weights: list[nn.Parameter], text: Scored, lr: float, epochs: int) -> None:
    """Train with AdamW and a rate that falls to zero."""
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    n = len(text.network)
    steps = epochs * (n // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, max(1, steps))
    for _ in range(epochs):
        for rows in torch.randperm(n)[: n // BATCH * BATCH].view(-1, BATCH):
            own = Scored(text.states[rows], text.network[rows], text.counts[rows], text.features[rows])
            optimizer.zero_grad()
            loss(own).mean().backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    """Print the mean loss of each gate on the second text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("texts", type=Path, nargs=2)
    parser.add_argument("--tokens", type=int, default=73_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_run(given.run)
    assert isinstance(model, MixedModel)
    assert model.head.gate is not None
    size = load_config(given.run).model.block_size
    first, second = (score(model, tokenizer, path, given.tokens, size) for path in given.texts)

    def show(name: str, losses: Tensor) -> None:
        print(f"{name:60s} {losses.mean().item():.4f}", flush=True)

    show("network alone", -second.network)
    show("counts alone", -second.counts[:, -1])
    show("gate of the run", mixed(model.head.gate, second).detach())
    longest = second.counts.shape[1] - 1
    every = list(range(longest, -1, -1))
    for units, orders in ((16, [longest]), (64, [longest]), (16, every), (64, every)):
        torch.manual_seed(0)
        other = Shares(first, units, orders)
        train(other, list(other.parameters()), first, LR, EPOCHS)
        show(f"{units} units, {len(orders)} share(s) of counts, trained on the first text", other(second).detach())
    held_out = first.first(HELD_OUT)
    torch.manual_seed(0)
    gate = copy.deepcopy(model.head.gate)
    train(lambda text: mixed(gate, text), list(gate.parameters()), held_out, 3e-4, 3)
    show(f"gate of the run, trained on with {HELD_OUT:,} tokens", mixed(gate, second).detach())
    numbers = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))]
    train(lambda text: mixed(model.head.gate, text, *numbers), numbers, held_out, 1e-2, 3)
    show(
        f"gate of the run, two numbers fitted on {HELD_OUT:,} tokens", mixed(model.head.gate, second, *numbers).detach()
    )


if __name__ == "__main__":
    main()
