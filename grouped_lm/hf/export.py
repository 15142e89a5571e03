"""`gvc export` and `gvc import`: runs as folders that transformers loads, and its checkpoints as runs."""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grouped_lm.config import Config, TokenizerConfig
from grouped_lm.data.tokenizers.base import Tokenizer, build_tokenizer
from grouped_lm.errors import ConfigError, DataError, DiskError, RunFolderError
from grouped_lm.heads import AdaptiveHead, DenseConfig, DenseHead, ShortlistHead
from grouped_lm.hf.names import body_from_hf, body_to_hf, config_from_hf, config_to_hf
from grouped_lm.hf.tokenizer_files import write_tokenizer
from grouped_lm.models.build import build_lm
from grouped_lm.models.lm import LanguageModel
from grouped_lm.optim.adamw import build_optimizer
from grouped_lm.runs.checkpoint import write_checkpoint
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.train_state import named_state, pack
from grouped_lm.system.files import write_json
from grouped_lm.system.runtime import describe_environment

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MODELING = Path(__file__).with_name("modeling_gvc.py")
COMPRESSED = ("grouped", "film", "class_full", "shortlist", "adaptive")
"""Heads that the modelling file knows."""


def export_run(run: Path, target: Path) -> Path:
    """Write the newest checkpoint of a run as a transformers checkpoint, whole or not at all, and return its folder.

    A dense head makes a plain `GPT2LMHeadModel` or `GPTNeoForCausalLM`; another one brings `modeling_gvc.py` along.

    Args:
        run: the run folder.
        target: a folder that does not exist yet.

    Raises:
        RunFolderError, CheckpointError: no run, no checkpoint, or something at `target`.
        ConfigError: a head that the modelling file does not know.
        DiskError: `target` cannot be written.
    """
    if target.exists():
        raise RunFolderError(f"{target} exists already: name a new folder with --out")
    config = RunFolder(run).read_config()
    if config.head.name not in ("dense", *COMPRESSED):
        raise ConfigError(f"head={config.head.name} cannot be exported; there are dense, {', '.join(COMPRESSED)}")
    unknown = {"head.bias=true": getattr(config.head, "bias", False)}
    unknown |= {"model.embedding=factorised": config.model.embedding != "table"}
    for what in (name for name, given in unknown.items() if given):
        raise ConfigError(f"a run with {what} cannot be exported: transformers has no such GPT-2 or GPT-Neo")
    model, _ = RunFolder(run).load_model(config, torch.device("cpu"))
    tokenizer = build_tokenizer(RunFolder(run).own_tokenizer(config.tokenizer))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
            whole = Path(folder) / "whole"
            whole.mkdir()
            _write(model, config, tokenizer, whole)
            whole.rename(target)
    except OSError as error:
        raise DiskError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _write(model: LanguageModel, config: Config, tokenizer: Tokenizer, folder: Path) -> None:
    is_dense = isinstance(model.head, DenseHead)
    tied = bool(getattr(config.head, "tied", False))
    body = config_to_hf(config.model, tokenizer.vocab_size, tokenizer.eot_id, tied=is_dense and tied)
    state = {f"transformer.{k}": v for k, v in body_to_hf(named_state(model.body), config.model.body).items()}
    # a tied table stands under the body's name alone, which comes first
    head = {k.removeprefix("head."): v for k, v in named_state(model).items() if k.startswith("head.")}
    if is_dense:
        state |= {f"lm_head.{name}": tensor for name, tensor in head.items()}
        values = body
    else:
        if isinstance(model.head, ShortlistHead):
            head = fold_directions(model.head, head)
        state |= {f"head.{name}": tensor for name, tensor in head.items()}
        values = {
            "model_type": "gvc",
            "architectures": ["GvcForCausalLM"],
            "auto_map": {"AutoConfig": "modeling_gvc.GvcConfig", "AutoModelForCausalLM": "modeling_gvc.GvcForCausalLM"},
            "body": {k: v for k, v in body.items() if k not in ("architectures", "dtype", "tie_word_embeddings")},
            "head": head_sizes(model.head, config.head),
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.eot_id,
            "eos_token_id": tokenizer.eot_id,
            "dtype": "float32",
        }
        shutil.copy(MODELING, folder / MODELING.name)
    save_file(_plain(state), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, values)
    ends = {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id, "pad_token_id": tokenizer.eot_id}
    write_json(folder / "generation_config.json", ends)
    write_tokenizer(tokenizer, config.model.block_size, folder)


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}


@torch.no_grad()
def fold_directions(head: ShortlistHead, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with the mean rows of groups added to their directions, and nothing of how they came about."""
    kept = {name: tensor for name, tensor in state.items() if name not in ("sharing", "parts", "directions")}
    rows, _ = head.columns(head.weight[head.picked()])
    directions = rows[head.shortlist_size :].view(*head.group_bias.shape, head.n_embd)
    return kept | {"directions": directions, "group_bias": head.group_bias}


def head_sizes(head: Any, config: Any) -> dict[str, Any]:
    """Return what `modeling_gvc.py` builds a head from: its config, with the sizes that the training text decided."""
    sizes = asdict(config)
    if isinstance(head, AdaptiveHead):
        return sizes | {"cutoffs": head.adaptive.cutoffs[:-1], "div_value": head.adaptive.div_value}
    sizes |= {"n_group": head.n_group, "group_size": head.group_size}
    if not isinstance(head, ShortlistHead):
        return sizes
    return sizes | {
        "directions": head.group_bias.shape[1],
        "shortlist_size": head.shortlist_size,
        "n_reserved": head.reserved.numel(),
    }


def import_checkpoint(source: Path, run: Path) -> Path:
    """Make a run folder of a transformers checkpoint of GPT-2 or GPT-Neo, and return it.

    Args:
        source: a folder with config.json and model.safetensors.
        run: a folder that does not exist yet.

    Raises:
        DataError: files missing or unreadable, or a model that our bodies cannot hold.
        RunFolderError: something stands at `run`.
    """
    if run.exists():
        raise RunFolderError(f"{run} exists already: name a new folder with --out")
    try:
        values = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        state = load_file(source / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{source} has no readable {CONFIG} and {WEIGHTS}: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{source / CONFIG} must hold an object, got {type(values).__name__}")
    tokenizer = TokenizerConfig(name="bytes" if values.get("vocab_size") == 257 else "gpt2")
    tied = "lm_head.weight" not in state or bool(values.get("tie_word_embeddings", True))
    config = Config(
        name=source.name,
        model=config_from_hf(values, source.name),
        head=DenseConfig(tied=tied),
        tokenizer=tokenizer,
    )
    model = build_lm(config)
    _fill(model, body_from_hf(state, config.model.body), tied, source)
    folder = RunFolder(run)
    run.mkdir(parents=True)
    folder.write_start(config, describe_environment(torch.device("cpu")))
    write_checkpoint(folder.checkpoints, 0, pack(model, build_optimizer(config.optim, model), {}), keep=2)
    write_json(folder.result, {"state": COMPLETE, "imported_from": str(source), "trainer/step": 0})
    return run


def _fill(model: LanguageModel, state: dict[str, Tensor], tied: bool, source: Path) -> None:
    state = {(k if k.startswith("lm_head.") else f"body.{k}"): v for k, v in state.items()}
    output = state.pop("lm_head.weight", None)
    state["head.weight"] = state.get("body.wte.weight", torch.empty(0)) if tied or output is None else output
    expected = model.state_dict()
    wrong = sorted(expected.keys() ^ state.keys()) or [k for k, v in expected.items() if state[k].shape != v.shape]
    if wrong:
        raise DataError(f"{source}: {', '.join(wrong[:5])} missing, unknown or of another shape than config.json says")
    model.load_state_dict(state)
