"""Where a shortlist head loses against a full softmax: in its first softmax, or in the one inside the group.

    python runs/log/scripts/loss_parts.py SHORTLIST_RUN DENSE_RUN TEXT [--windows 80]

The probability of a class under the full softmax is the sum over its tokens. The log entry "With more than 20,000
types ..." of 2026-11-30 has the figures. Letters: N tokens, V vocabulary, G groups.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_lm.data import prepare_split
from grouped_lm.heads.shortlist import ShortlistHead
from grouped_lm.models.lm import LanguageModel
from grouped_lm.runs.load import load_config, load_run, own_tokenizer


def own_head(model: LanguageModel) -> tuple[Any, int]:
    """Return the head of the network, without counts beside it, and the width of its states."""
    head = getattr(model.head, "head", model.head)
    return head, head.n_embd


def describe_groups(head: ShortlistHead, counts: np.ndarray) -> str:
    """Return how many groups have tokens of the training text, tokens that are not in it, and both."""
    groups = head.token_to_group.long().numpy()
    unseen = np.bincount(groups[(counts == 0) & (groups >= 0)], minlength=head.n_group)
    sizes = np.bincount(groups[groups >= 0], minlength=head.n_group)
    mixed = (unseen > 0) & (unseen < sizes)
    return f"{head.n_group} groups; unseen tokens alone: {(unseen == sizes).sum()}, both kinds: {mixed.sum()}"


@torch.no_grad()
def parts(
    shortlist: LanguageModel, dense: LanguageModel, tokens: np.ndarray, windows: int, size: int
) -> dict[str, Tensor]:
    """Return the (N,) losses of both heads, as class and token in it."""
    (head, width), (full, full_width) = own_head(shortlist), own_head(dense)
    groups, found = head.token_to_group.long(), []
    for start in np.linspace(0, len(tokens) - size - 1, windows).astype(int):
        window = torch.from_numpy(tokens[start : start + size + 1].astype(np.int64))
        inputs, targets = window[None, :-1], window[1:]
        ours = head.loss(shortlist.hidden(inputs)[0, :, :width], targets, "none", accuracy=True)
        log_prob = full.log_prob(dense.hidden(inputs)[0, :, :full_width]).float()
        nll = -log_prob.gather(1, targets[:, None]).squeeze(1)
        sums = torch.zeros(len(targets), head.n_group + 1)
        sums.index_add_(1, torch.where(groups < 0, head.n_group, groups), log_prob.exp())
        group = groups[targets]
        in_class = -sums.gather(1, group.clamp_min(0)[:, None]).squeeze(1).log()
        first = torch.where(group < 0, nll, in_class)
        found.append((ours.group_nll.float(), ours.token_nll.float(), first, nll - first))
    names = ("first softmax", "inside groups", "full softmax: class", "full softmax: token in it")
    return {name: torch.cat(column) for name, column in zip(names, zip(*found, strict=True), strict=True)}


def main() -> None:
    """Print the mean of each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs=2)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=80)
    given = parser.parse_args()
    torch.set_num_threads(1)
    (shortlist, tokenizer), (dense, _) = map(load_run, given.runs)
    config = load_config(given.runs[0])
    training = prepare_split(config.data, own_tokenizer(given.runs[0], config.tokenizer), "train")
    print(describe_groups(own_head(shortlist)[0], np.asarray(training.counts())))
    tokens = np.array(tokenizer.encode(given.text.read_text(encoding="utf-8")))
    for name, losses in parts(shortlist, dense, tokens, given.windows, config.model.block_size).items():
        print(f"{name:28s} {losses.mean().item():.4f}")


if __name__ == "__main__":
    main()
