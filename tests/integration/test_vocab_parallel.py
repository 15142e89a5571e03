"""Token tables in rows of several processes: the losses, gradients, checkpoints and bytes of whole ones."""

import dataclasses
import json
import shutil

import pytest
import torch
from fault_tools import final_state
from processes import together, train_together
from test_parallel import assert_same_curve, drop_last_checkpoint
from test_plan_devices import GLOO, measure

from grouped_lm.config import ModelConfig, TokenizerConfig
from grouped_lm.data import prepare_data
from grouped_lm.distributed.process_group import ProcessGroup, join_process_group, local_tensor
from grouped_lm.distributed.vocab_parallel import split_vocabulary
from grouped_lm.heads import HEADS, IGNORE_INDEX, DenseConfig
from grouped_lm.heads.dense import DenseHead
from grouped_lm.measure.devices import DEVICES
from grouped_lm.plan.devices import VOCAB_PARALLEL, plan_devices

TIED = ("class_full", "shortlist", "sampled", "trim")
WIDTH, BATCH, LENGTH = 6, 2, 5
VOCAB = 50_257
"""GPT-2's."""
CUT = {
    "tied": ("dense", {}),
    "untied": ("dense", {"tied": False, "bias": True, "chunk_rows": 100, "start": "counts"}),
    "grouped": ("grouped", {}),
}


def cut_config(config, case: str, **train):
    """A run with its tables in rows, with that head."""
    head, options = CUT[case]
    made = config(head, **train)
    made = dataclasses.replace(made, head=HEADS[head].schema(**options))
    return dataclasses.replace(made, train=dataclasses.replace(made.train, vocab_parallel=True))


class Lookup(torch.nn.Module):
    """A body that is its embedding."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(vocab_size, WIDTH)

    def forward(self, input_ids):
        return self.wte(input_ids).tanh()


def make_pair(vocab_size: int, tied: bool, bias: bool, chunk_rows: int | None, smoothing: float):
    """The same model twice, from one seed: whole, and to be cut."""
    from grouped_lm.models.lm import LanguageModel

    def make():
        torch.manual_seed(3)
        body = Lookup(vocab_size)
        weight = body.wte.weight if tied else torch.nn.Parameter(torch.randn(vocab_size, WIDTH))
        head = DenseHead(DenseConfig(tied=tied, bias=bias, chunk_rows=chunk_rows), weight)
        if head.bias is not None:
            torch.nn.init.normal_(head.bias)
        head.regularise(smoothing, smoothing)
        return LanguageModel(body, head).double().train()

    return make(), make()


def draw_batches(processes: int, vocab_size: int, ignored: str):
    """(W, B, T) ids and targets, some or all of which do not count."""
    generator = torch.Generator().manual_seed(11)
    shape = processes, BATCH, LENGTH
    ids = torch.randint(vocab_size, shape, generator=generator)
    targets = torch.randint(vocab_size, shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < {"none": 0.0, "some": 0.4, "all": 2.0}[ignored]] = IGNORE_INDEX
    return ids, targets


def compare(vocab_size: int, process_group: ProcessGroup, reduction: str, ignored: str, **options) -> None:
    """Hold loss, parts and every gradient of the cut model against the whole one, which reads all batches."""
    whole, cut = make_pair(vocab_size, **options)
    split_vocabulary(cut, process_group, torch.device("cpu"))
    ids, targets = draw_batches(process_group.size, vocab_size, ignored)
    losses = [whole(i, t, reduction=reduction) for i, t in zip(ids, targets, strict=True)]
    weights = torch.linspace(0.5, 2, BATCH * LENGTH).double().view(BATCH, LENGTH)  # unlike for every token
    sum((loss.objective() * weights).sum() for loss in losses).backward()
    own = cut(ids[process_group.rank], targets[process_group.rank], reduction=reduction)
    (own.objective() * weights).sum().backward()
    torch.testing.assert_close(own.nll, losses[process_group.rank].nll, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(own.objective(), losses[process_group.rank].objective(), rtol=1e-11, atol=1e-11)
    for (name, p), (expected_name, expected) in zip(cut.named_parameters(), whole.named_parameters(), strict=True):
        assert name == expected_name
        assert p.shape == expected.shape
        assert local_tensor(p).shape[0] <= -(-vocab_size // process_group.size)
        torch.testing.assert_close(p.grad.full_tensor(), expected.grad, rtol=1e-10, atol=1e-11)
    hidden = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(process_group.rank)).double()
    torch.testing.assert_close(cut.head.log_prob(hidden), whole.head.log_prob(hidden))


@pytest.mark.parametrize("processes", [2, 3])
def test_loss_and_gradients_are_those_of_the_eager_line(processes, tmp_path):
    plain = {"tied": True, "bias": False, "chunk_rows": None, "smoothing": 0.0}

    def action() -> None:
        with join_process_group(1, torch.device("cpu")) as process_group:
            for reduction in ("none", "sum", "mean"):
                for ignored in ("none", "some", "all"):
                    compare(31, process_group, reduction, ignored, **plain)
            for reduction in ("none", "sum"):
                compare(31, process_group, reduction, "some", **plain | {"tied": False, "bias": True, "chunk_rows": 4})
                compare(
                    30, process_group, reduction, "some", **plain | {"bias": True, "chunk_rows": 7, "smoothing": 0.1}
                )

    assert together(processes, action, tmp_path / "log") == [0] * processes


@pytest.mark.parametrize("case", CUT)
def test_two_processes_train_as_one_does_and_their_checkpoints_are_anyones(case, config, tmp_path):
    made = cut_config(config, case, checkpoint_every_steps=10, micro_batch_size=2, grad_accum_steps=2)
    train_together(1, made, tmp_path / "one")
    train_together(2, made, tmp_path / "two")
    assert_same_curve(tmp_path / "two", tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert two["params/total"] == one["params/total"]
    assert final_state(tmp_path / "two").keys() == {*final_state(tmp_path / "one"), "rng/1/cpu"}
    shutil.copytree(tmp_path / "one", tmp_path / "one-two")
    for name, processes in (("two", 1), ("one-two", 2)):
        assert drop_last_checkpoint(tmp_path / name) == 10
        train_together(processes, made, tmp_path / name)
        assert_same_curve(tmp_path / name, tmp_path / "one")


@pytest.mark.parametrize("case", CUT)
def test_memory_and_bytes_are_as_planned_and_the_table_takes_half(case, config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "grouped_lm.train.meters.measure_gemm_flops_per_sec", lambda device, dtype: 1e9
    )  # takes its time
    made = cut_config(config, case, max_steps=5, micro_batch_size=4, grad_accum_steps=2, checkpoint_every_steps=100)
    body = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=32)
    made = dataclasses.replace(made, model=body, tokenizer=TokenizerConfig(name="gpt2"))
    prepare_data(made.data, made.tokenizer)
    plans = {plan.strategy: plan for plan in plan_devices(made, 2, DEVICES["t4"], GLOO, 10**6)}
    cut, whole = plans[VOCAB_PARALLEL], plans["ddp"]
    peak, sent = measure(made, 2, "ddp", tmp_path)
    assert cut.peak_bytes == pytest.approx(peak, rel=0.1)
    assert cut.sent_bytes == pytest.approx(sent, rel=0.1)
    columns = body.n_embd + (body.n_embd + 1) * (case == "untied")
    assert whole.weights_bytes - cut.weights_bytes == 4 * (VOCAB // 2) * columns
    assert sent < whole.sent_bytes / 4


def test_rows_that_no_token_touched_stand_still_in_parts_of_a_table_too(config, tmp_path):
    made = cut_config(config, "tied", max_steps=6)
    made = dataclasses.replace(made, optim=dataclasses.replace(made.optim, sparse_rows=True))
    train_together(1, made, tmp_path / "one")
    train_together(2, made, tmp_path / "two")
    assert_same_curve(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.strategy=fsdp2"], "needs train.strategy=ddp (fsdp2 has the table in shards already)"),
        (["train.compile=true"], "and train.compile=false, got ddp and true"),
        *((["head=" + head], f"the whole table that head={head} shares: set head.tied=false") for head in TIED),
        (
            ["head=grouped", "train.devices=32", "train.micro_batch_size=32"],
            "gives each of 32 processes 9 of 257 tokens, and the last",
        ),
        (["head=grouped", "model.embedding=factorised"], "finds no table with a row per token"),
    ],
)
def test_mistakes(gvc, tiny, workdir, words, said):
    done = gvc("train", *tiny, "train.vocab_parallel=true", *words)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert list(workdir.iterdir()) == []


def test_one_process_plans_every_head_with_the_table_whole(gvc):
    done = gvc("plan", "model=debug", "tokenizer=bytes", "--device", "t4", "--json", "train.vocab_parallel=true")
    assert set(TIED) <= {*(plan["head"] for plan in json.loads(done.out)["heads"]), *json.loads(done.out)["unplanned"]}
