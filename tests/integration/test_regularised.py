"""Label smoothing and z-loss stand beside the likelihood, at the first softmax, and are torch's own."""

import json

import pytest
import torch
import torch.nn.functional as F
from head_cases import batch_of, head_of
from torch import Tensor

from grouped_lm.config import Config, ModelConfig, TokenizerConfig, TrainConfig
from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, IGNORE_INDEX, Head, RegularisedHead, SampledConfig
from grouped_lm.models.lm import build_lm

CASES = {
    "dense": {"bias": True},
    "dense ": {"chunk_rows": 7},
    "low_rank": {"bias": True, "chunk_rows": 7},
    "trim": {"bias": True, "chunk_rows": 7},
    "grouped": {},
    "film": {},
    "class_full": {},
    "adaptive": {},
    "shortlist": {},
}


def first_softmax(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the first softmax and the targets' classes in it, from the parts that each head names."""
    if hasattr(head, "class_logits"):
        groups, slots = head.groups_and_slots(targets)
        logits = head.class_logits(hidden.flatten(0, 1), *head.class_layer(head.weight[head.class_row_ids()]))
        return logits.unflatten(0, targets.shape), torch.where(groups < 0, slots, groups + head.shortlist_size)
    if hasattr(head, "group"):
        return head.group(hidden), head.groups_and_slots(targets)[0]
    if hasattr(head, "adaptive"):
        rank = head.rank[targets]
        return head.adaptive.head(hidden), torch.where(rank < 3, rank, torch.where(rank < 20, 3, 4))
    if hasattr(head, "token_to_class"):
        return F.linear(hidden, head.rows(), head.bias), head.token_to_class[targets]
    return F.linear(head.down(hidden) if hasattr(head, "down") else hidden, head.weight, head.bias), targets


def test_every_head_that_has_them_is_here():
    assert {name.strip() for name in CASES} == {name for name, (_, head) in HEADS.items() if head.regularised}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 0.01), (0.2, 0.03)])
def test_extra_is_torchs_smoothing_and_the_squared_log_partition(name, smoothing, z_loss):
    head = head_of(name.strip(), **CASES[name]).train()
    hidden, targets = batch_of(103, 4, 5)
    plain = head.loss(hidden, targets, reduction="none")
    assert plain.extra is None
    head.regularise(smoothing, z_loss)
    loss = head.loss(hidden, targets, reduction="none")
    torch.testing.assert_close(loss.nll, plain.nll)

    counted = targets != IGNORE_INDEX
    logits, classes = first_softmax(head, hidden, targets.clamp_min(0))
    flat = logits.flatten(0, 1), classes.flatten()
    smooth = F.cross_entropy(*flat, reduction="none", label_smoothing=smoothing) - F.cross_entropy(
        *flat, reduction="none"
    )
    expected = (smooth.view(4, 5) + z_loss * logits.logsumexp(-1).square()) * counted
    torch.testing.assert_close(loss.extra, expected)
    inputs = [hidden, *(p for p in head.parameters() if p.numel())]
    weights = torch.randn(4, 5, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((loss.extra * weights).sum(), inputs, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    for reduction, value in (("sum", expected.sum()), ("mean", expected.sum() / counted.sum())):
        reduced = head.loss(hidden, targets, reduction=reduction)
        torch.testing.assert_close(reduced.extra, value)
        torch.testing.assert_close(reduced.objective(), reduced.nll + value)
    assert head.eval().loss(hidden, targets).extra is None


def test_a_head_without_them_says_so():
    config = Config(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8),
        tokenizer=TokenizerConfig(name="bytes"),
        head=SampledConfig(),
        train=TrainConfig(z_loss=1e-4),
    )
    with pytest.raises(ConfigError, match="they are defined for dense, grouped"):
        build_lm(config)
    assert not isinstance(head_of("sampled"), RegularisedHead)


def test_training_lowers_what_is_added_and_reports_the_likelihood(gvc, tiny):
    words = ["train", *tiny, "head=grouped"]
    plain = gvc(*words, "hydra.run.dir=plain").run_dir
    added = gvc(*words, "train.z_loss=1", "train.label_smoothing=0.5", "hydra.run.dir=added").run_dir
    first = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (plain, added)]
    assert abs(first[0]["train/loss"] - first[1]["train/loss"]) < 0.1  # not lifted by (log Z)^2, which is above 7
    assert first[0]["train/loss"] != first[1]["train/loss"]
