"""Body and head go through `torch.compile` as one graph, forward and backward, and what comes out is the same."""

import pytest
import torch
from head_cases import plain_shortlist

from grouped_lm.config import Config, GroupingConfig, ModelConfig, TokenizerConfig
from grouped_lm.heads import HEADS, IGNORE_INDEX
from grouped_lm.heads.losses import functional
from grouped_lm.models.lm import build_lm
from grouped_lm.system.runtime import autocast

HEADS = {
    **{name: HEADS[name].schema() for name in ("dense", "grouped", "film", "class_full", "trim")},
    "low_rank": HEADS["low_rank"].schema(rank=4),
    "adaptive": HEADS["adaptive"].schema(cutoffs=[50, 120]),
    "sampled": HEADS["sampled"].schema(samples=64),
    "dense in chunks": HEADS["dense"].schema(chunk_rows=8),
    "shortlist": plain_shortlist(
        shortlist_size=50, group_size=20, directions=0, shared_rows=100, reserve=True, start="counts"
    ),
    "own shortlist": plain_shortlist(shortlist_size=50, directions=4, own_shortlist=True, start="counts"),
}


def model_and_batch(head, **model):
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=24, **model)
    config = Config(
        model=shape, head=head, tokenizer=TokenizerConfig(name="bytes"), grouping=GroupingConfig(name="frequency")
    )
    counts = (torch.arange(257) - 40).clamp_min(0).numpy()  # so that two groups of 20 are never seen
    input_ids = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(1))
    targets = input_ids.roll(-1, 1)
    targets[:, -3:] = IGNORE_INDEX
    return build_lm(config, lambda: counts).train(), input_ids, targets


@pytest.mark.parametrize(
    ("head", "model", "dtype"),
    [
        *((name, {}, "float32") for name in HEADS),
        ("shortlist", {"activation_checkpointing": True, "body": "gpt_neo", "window_size": 8}, "bfloat16"),
    ],
)
def test_a_training_step_is_one_graph(head, model, dtype, monkeypatch):
    monkeypatch.setattr(functional, "_static_sizes", True)  # as for a CUDA graph
    torch._dynamo.reset()  # it compiles one function a few times only
    lm, input_ids, targets = model_and_batch(HEADS[head], **model)
    found = []
    for forward in (lm, torch.compile(lm, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)  # the sampled softmax draws tokens
        with autocast(torch.device("cpu"), dtype):
            loss = forward(input_ids, targets)
        found.append([loss.nll, *torch.autograd.grad(loss.objective(), list(lm.parameters()))])
    torch.testing.assert_close(*found)


def test_a_break_is_noticed(monkeypatch):
    lm, input_ids, targets = model_and_batch(HEADS["grouped"])
    loss = type(lm.head).loss

    def breaks(self, *args, **kwargs):
        torch._dynamo.graph_break()
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(type(lm.head), "loss", breaks)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lm, fullgraph=True, backend="eager")(input_ids, targets)
