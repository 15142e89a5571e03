# ruff: noqa: D101, D102, D103, TID253
"""Counts in both softmaxes of the default head: the form that the log of 2026-11-30 found to add nothing to a gate.

    python runs/log/log_linear.py OUT.jsonl data=text data.train=... data.valid=...

log p(class | context) times a scale is added to the first softmax, log p(token | class, context) times another to the
second; both scales are learnt, and linear in what a gate sees of the context. On one body and head, which are trained
without counts, four forms read detached logits and probabilities: log-linear, a gate, and a gate over log-linear.
`through=1` as the first override trains the network through the log-linear form alone. Further overrides are those of
`gvc train`. OUT gets a row of losses every 425 steps.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from grouped_lm.cli.compose.compose import HydraFlags
from grouped_lm.cli.compose.run import compose_one
from torch import nn

from grouped_lm.data.loader import TrainBatches, ValidWindows
from grouped_lm.data.prepare import prepare_data
from grouped_lm.models.lm import build_lm
from grouped_lm.optim import build_optimizer, learning_rate, set_learning_rate
from grouped_lm.prior.classes import ClassPrior
from grouped_lm.prior.kneser_ney import Contexts
from grouped_lm.prior.store import load_or_build

ORDER, UNITS, FLOOR = 5, 16, -25.0
FORMS = ("head", "counts", "log_linear", "gate", "gate_log_linear")
N_FEATURES = 3 * ORDER - 2


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.states, self.features, self.out = (
            nn.Linear(width, UNITS),
            nn.Linear(N_FEATURES, UNITS),
            nn.Linear(UNITS, 1),
        )
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, -1.0)

    def mix(self, nll, counts_nll, states, features):
        share = self.out(torch.tanh(self.states(states) + self.features(features))).squeeze(-1)
        return -torch.logaddexp(F.logsigmoid(-share) - nll, F.logsigmoid(share) - counts_nll)


class Forms(nn.Module):
    """All forms on the states of one batch; losses per token."""

    def __init__(self, model, counts, through):
        super().__init__()
        head = model.head
        self._head, self.counts, self.through = [head], counts, through  # a list: its weights are not learnt here
        self.scales = nn.Parameter(torch.full((2,), 1.0 if through else 0.3))
        self.slopes = nn.Linear(N_FEATURES, 2, bias=False)
        nn.init.zeros_(self.slopes.weight)
        self.gate, self.gate_log_linear = Gate(head.n_embd), Gate(head.n_embd)
        groups, slots = head.token_to_group.long().numpy(), head.token_to_slot.long().numpy()
        classes = np.where(groups < 0, slots, groups + head.shortlist_size)
        self.prior = ClassPrior(counts, classes, np.where(groups < 0, 0, slots))

    def features(self, contexts):
        totals = self.counts.context_counts(contexts)
        flags = np.eye(ORDER)[np.count_nonzero(totals, axis=1)]
        backoffs = [self.counts.interpolation(k, contexts)[1] for k in range(1, ORDER)]
        return torch.from_numpy(np.concatenate([np.log1p(totals), flags, np.stack(backoffs, 1)], 1).astype(np.float32))

    def forward(self, states, targets, contexts, counts_nll):
        head, features = self._head[0], self.features(contexts)
        places = head._places_of(targets)
        n_shortlist, n_classes = head.shortlist_size, head.shortlist_size + head.n_learned
        scales = (self.scales + self.slopes(features)).unbind(1)
        logits = head.class_logits(states, *head.class_layer(head.weight[head.class_row_ids()]))
        inside = (places.groups >= 0).nonzero().squeeze(1)
        classes = n_shortlist + places.groups[inside].numpy()
        members = torch.from_numpy(self.prior.members[classes])
        padding, rows = members < 0, members.clamp_min(0)
        inner = (head.weight[rows] @ states[inside].unsqueeze(-1)).squeeze(-1) + head.bias[rows]

        def loss(class_logits, token_logits):
            known = places.classes.clamp_min(0)
            first = F.cross_entropy(class_logits, known, reduction="none") * places.learned + places.fixed
            tokens = token_logits.masked_fill(padding, -math.inf)
            return first.index_add(0, inside, F.cross_entropy(tokens, places.slots[inside], reduction="none"))

        picked = inside.numpy()
        left_out = None if contexts.left_out is None else contexts.left_out[picked]
        own_counts = None if contexts.own_counts is None else contexts.own_counts[:, picked]
        part = Contexts(contexts.nodes[:, picked], left_out, own_counts)
        by_class = torch.from_numpy(self.prior.class_log_prob(contexts)[:, :n_classes]).float().clamp_min(FLOOR)
        by_member = torch.from_numpy(self.prior.member_log_prob(part, classes)).float()
        by_member = by_member.masked_fill(padding, 0).clamp_min(FLOOR)
        own = loss(logits, inner)
        if not self.through:
            logits, inner, states = logits.detach(), inner.detach(), states.detach()
        linear = loss(logits + scales[0][:, None] * by_class, inner + scales[1][inside, None] * by_member)
        gated = self.gate.mix(own.detach(), counts_nll, states.detach(), features)
        both = self.gate_log_linear.mix(linear.detach(), counts_nll, states.detach(), features)
        return own, counts_nll, linear, gated, both


def main():
    out, *words = sys.argv[1:]
    through = words[:1] == ["through=1"]
    tuned = ["experiment=main_job", "train.max_steps=1700", "optim.lr=4e-3", "optim.eps=1e-6", "optim.beta2=0.99"]
    config = compose_one([*tuned, *words[through:]], HydraFlags())
    torch.manual_seed(config.seed)
    corpus = prepare_data(config.data, config.tokenizer)
    model = build_lm(config, corpus.train.counts, corpus.train.tokens)
    text, valid, size = np.asarray(corpus.train.tokens()), np.asarray(corpus.valid.tokens()), config.model.block_size
    counts = load_or_build(corpus.train, ORDER)
    forms = Forms(model, counts, through)
    if through:  # the counts bring the frequencies
        nn.init.zeros_(model.head.bias)
        nn.init.zeros_(model.head.group_bias)
    optimizer, steps = build_optimizer(config.optim, model), config.train.max_steps
    beside = torch.optim.AdamW(forms.parameters(), betas=(0.9, 0.99), eps=1e-6, weight_decay=0)

    def losses(input_ids, targets, tokens, starts, leave_one_out):
        looked_up = [counts.text_contexts(tokens, s + 1, s + 1 + size, leave_one_out=leave_one_out) for s in starts]
        nodes = np.concatenate([one.nodes for one in looked_up], axis=1)
        left_out = own = None
        if leave_one_out:
            left_out = np.concatenate([one.left_out for one in looked_up])
            own = np.concatenate([one.own_counts for one in looked_up], axis=1)
        nll = np.concatenate([-counts.target_log_prob(tokens, s + 1, s + 1 + size, leave_one_out) for s in starts])
        states = model.hidden(input_ids).flatten(0, 1)
        return forms(states, targets.flatten(), Contexts(nodes, left_out, own), torch.from_numpy(nll).float())

    batches = TrainBatches(text, size, config.train.micro_batch_size, config.seed)
    for step in range(steps):
        samples = range(step * batches.batch_size, (step + 1) * batches.batch_size)
        places = [divmod(sample, batches.windows_per_epoch) for sample in samples]
        starts = [int(batches.epoch_starts(epoch)[place]) for epoch, place in places]
        rate = learning_rate(config.optim, step, steps)
        set_learning_rate(optimizer, rate)
        beside.param_groups[0]["lr"] = rate
        own, _, *others = losses(*batches.batch(step), text, starts, leave_one_out=True)
        learnt = others if through else [own, *others]
        sum(loss.mean() for loss in learnt).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (optimizer, beside):
            each.step()
            each.zero_grad()
        if (step + 1) % 425 == 0 or step + 1 == steps:
            with torch.no_grad():
                sums, n_batches = np.zeros(len(FORMS)), (min(65536, len(valid) - 1) // size) // 8
                for index in range(n_batches):
                    starts = [(8 * index + row) * size for row in range(8)]
                    batch = ValidWindows(valid, size, 8).batch(index)
                    sums += [float(loss.mean()) for loss in losses(*batch, valid, starts, leave_one_out=False)]
            row = {"step": step + 1} | dict(zip(FORMS, (sums / n_batches).round(4).tolist(), strict=True))
            print(row, flush=True)
            with Path(out).open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
