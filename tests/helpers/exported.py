"""Runs of tiny untrained models, and their exports as transformers loads them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from grouped_lm.config import Config, ModelConfig, TokenizerConfig
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.models.lm import build_lm
from grouped_lm.runs.checkpoint import write_checkpoint
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.train_state import pack


def make_run(
    folder: Path,
    head: Any,
    body: str = "gpt2",
    tokenizer="bytes",
    n_layer: int = 3,
    scale: float = 3,
    all_seen=False,
    **model,
) -> Path:
    """Write a run folder with one checkpoint of random weights, `scale` times as large as at the start.

    Every 50th token or so has no training occurrence.
    """
    torch.manual_seed(0)
    sizes = {"n_layer": n_layer, "n_head": 2, "n_embd": 16, "block_size": 32, "window_size": 6} | model
    shape = ModelConfig(body=body, **sizes)
    tokenizer = TokenizerConfig(name=tokenizer) if isinstance(tokenizer, str) else tokenizer
    config = Config(model=shape, head=head, tokenizer=tokenizer)
    counts = torch.randint(int(all_seen), 50, (build_tokenizer(config.tokenizer).vocab_size,)).numpy()
    lm = build_lm(config, lambda: counts)
    for parameter in lm.parameters():
        parameter.data.mul_(scale).add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    RunFolder(folder).write_start(config, {})
    write_checkpoint(RunFolder(folder).checkpoints, 1, pack(lm, torch.optim.SGD(lm.parameters()), {}), keep=2)
    return folder


def load(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Return the model, in evaluation mode, and the tokenizer of an exported folder."""
    transformers = pytest.importorskip("transformers")
    where = {"local_files_only": True, "trust_remote_code": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **where, **options).eval(), tokenizer


def keep_modules_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let transformers work offline, and copy modelling files to `folder` instead of the user's cache."""
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
