"""Whole runs with kernels beside runs without: in triton's interpreter, and on a GPU where there is one.

`make check-gpu` runs these and the tests of the kernels on a GPU, in two minutes.
"""

import json
import os
from pathlib import Path

import pytest
import torch

HEADS = {
    "shortlist": ["head=shortlist", "head.shortlist_size=20", "head.group_size=16"],
    "grouped": ["head=grouped"],
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def losses_of(gvc, tiny, name: str, *words: str) -> list[float]:
    done = gvc("train", *tiny, *words, "train.log_every_steps=1", f"hydra.run.dir={name}")
    assert done.code == 0, done.err
    lines = (done.run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["train/loss"] for row in rows if "train/loss" in row] + [rows[-1]["val/loss"]]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are not interpreted here")
def test_a_run_with_interpreted_kernels_has_the_losses_of_one_without(gvc, tiny):
    Path("short.txt").write_text("Once there was a cat. The cat had a ball and liked to sing." * 4)
    words = [*HEADS["shortlist"], "train.max_steps=3", "model.block_size=16", "grouping=frequency"]
    words += ["data.valid=short.txt", "train.eval_batch_size=16"]
    plain = losses_of(gvc, tiny, "plain", *words)
    ours = losses_of(gvc, tiny, "kernels", *words, "train.kernels=on")
    assert len(plain) == 4
    assert ours == pytest.approx(plain, abs=2e-5)


def test_kernels_that_do_not_run_here_are_refused_in_one_line(gvc, tiny, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    done = gvc("train", *tiny, "train.kernels=on")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "train.kernels=on needs one, cpu is no CUDA device" in done.err


@needs_gpu
@pytest.mark.parametrize("head", HEADS)
def test_a_run_on_a_gpu_has_the_losses_of_the_cpu(gvc, tiny, head):
    words = [*HEADS[head], "train.max_steps=20"]
    cpu = losses_of(gvc, tiny, "cpu", *words)
    gpu = losses_of(gvc, tiny, "gpu", *words, "train.device=cuda", "train.kernels=on")
    assert gpu == pytest.approx(cpu, abs=2e-3)
    assert losses_of(gvc, tiny, "again", *words, "train.device=cuda", "train.kernels=on") == gpu


CAPTURED = {
    **{head: [*words, "train.kernels=on", "model.dropout=0.1"] for head, words in HEADS.items()},
    "dense": ["head=dense", "train.dtype=bfloat16", "optim.ema=0.9"],
    "float16": ["head=film", "train.dtype=float16"],
    "adaptive": ["head=adaptive", "head.cutoffs=[20,60]"],
}


@needs_gpu
@pytest.mark.parametrize("name", CAPTURED)
def test_captured_steps_have_the_losses_of_plain_ones(gvc, tiny, name):
    words = [*CAPTURED[name], "train.max_steps=20", "train.grad_accum_steps=2", "train.device=cuda"]
    plain = losses_of(gvc, tiny, "plain", *words)
    captured = losses_of(gvc, tiny, "captured", *words, "train.cuda_graphs=true")
    assert captured == pytest.approx(plain, abs=1e-5)
