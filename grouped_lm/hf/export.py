"""`gvc export` and `gvc import`: runs as folders that transformers loads, and its checkpoints as runs."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grouped_lm.config import Config, TokenizerConfig
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.data.tokenizers.bpe import BPETokenizer
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.errors import ConfigError, DataError
from grouped_lm.heads import DenseConfig
from grouped_lm.hf import files, names
from grouped_lm.hf.tokenizer_files import choose_tokenizer, write_tokenizer
from grouped_lm.models.lm import LanguageModel, build_lm, count_params
from grouped_lm.optim import build_optimizer
from grouped_lm.runs.checkpoint import write_checkpoint
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.load import load_config, load_model, own_tokenizer
from grouped_lm.runs.train_state import named_state, pack
from grouped_lm.system.files import write_json
from grouped_lm.system.runtime import describe_environment

log = logging.getLogger(__name__)


def export_run(run: Path, target: Path) -> Path:
    """Write the newest checkpoint of a run as a transformers checkpoint, whole or not at all, and return its folder.

    A dense or sampled head without biases and reserve makes a plain `GPT2LMHeadModel` or `GPTNeoForCausalLM`. Other
    heads bring `modeling_gvc.py` along. A factorised input embedding is written as the table that it stands for.

    Raises:
        RunFolderError, CheckpointError: no run, no checkpoint, or `target` exists.
        ConfigError: the run has a prior.
        DiskError: `target` cannot be written.
    """
    files.check_new(target)  # before a large model is read
    folder = RunFolder(run)
    config = load_config(run)
    if config.prior.is_on:
        raise ConfigError(
            f"{run} has prior={config.prior.name}, and transformers has no place for counts: export a run "
            "with prior=none. Its network is the same if this one has prior.held_out_tokens=0"
        )
    model, step = load_model(run, config, torch.device("cpu"))
    tokenizer = build_tokenizer(own_tokenizer(run, config.tokenizer))
    card = {"folder": target.name, "step": step, "result": folder.read_result() or {}}
    with files.new_folder(target) as new:
        _write(model, config, tokenizer, new, card)
    return target


def _write(model: LanguageModel, config: Config, tokenizer: Tokenizer, folder: Path, card: dict[str, Any]) -> None:
    head, head_state = names.head_to_hf(model.head, names.shared_table(model.body))
    plain = head["name"] == "dense" and not (
        head["bias"] or head.get("reserve")
    )  # GPT-2 and GPT-Neo of transformers have this layer
    eot_id = tokenizer.eot_id
    ends = {"bos_token_id": eot_id, "eos_token_id": eot_id}
    body = names.config_to_hf(config.model, tokenizer.vocab_size, eot_id, tied=plain and head["tied"])
    prefix = "lm_head" if plain else "head"
    state = {f"transformer.{name}": tensor for name, tensor in _body_state(model, config).items()}
    files.write_weights(folder, state | {f"{prefix}.{name}": tensor for name, tensor in head_state.items()})
    if plain:
        write_json(folder / files.CONFIG, body)
    else:
        files.write_gvc_config(folder, body, head, ends, "float32")
    write_json(folder / "generation_config.json", ends | {"pad_token_id": eot_id})
    write_tokenizer(tokenizer, config.model.block_size, folder)
    values = {"title": config.name, "kind": config.model.body, "head": config.head.name, "is_plain": plain}
    values |= {"n_params": count_params(model)[0], "block_size": config.model.block_size, "data": config.data.name}
    ids = {"tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size, "eot_id": eot_id}
    files.write_card(folder, values | ids | card)


@torch.no_grad()
def _body_state(model: LanguageModel, config: Config) -> dict[str, Tensor]:
    """Return the tensors of the body under the names of transformers, with a table as the input embedding."""
    state = named_state(model.body)
    embedding: Any = model.body.wte
    if names.shared_table(model.body) is None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("wte.")}
        state["wte.weight"] = embedding(torch.arange(model.head.vocab_size))
    return names.body_to_hf(state, config.model.body)


def import_checkpoint(source: Path, run: Path, tokenizer: str | None = None) -> Path:
    """Make a run folder of a transformers checkpoint of GPT-2 or GPT-Neo, whole or not at all, and return it.

    Nothing is guessed: the tokenizer in the folder is compared with ours and kept or refused, and the output layer is
    tied where its weights equal the input embedding. A warning says what was left out.

    Args:
        source: a folder with config.json and model.safetensors, or its shards.
        run: a folder that does not exist yet.
        tokenizer: gpt2, bytes, or the path of a tokenizer.json; None takes the files in `source`.

    Raises:
        DataError: files are missing or unreadable, or our bodies and tokenizers cannot hold the model.
        RunFolderError: `run` exists.
        DiskError: `run` cannot be written.
    """
    files.check_new(run)  # before a large model is read
    values = files.read_config(source)
    model_config = names.config_from_hf(values, source.resolve().name)
    state = names.body_from_hf(files.read_weights(source), model_config.body)
    kept, notes = choose_tokenizer(source, tokenizer, values.get("vocab_size"))
    notes += _fit_vocabulary(state, values, kept, source)
    tied = _is_tied(state, values, source)
    kept_config = TokenizerConfig(name=kept.name, vocab_size=kept.vocab_size if kept.name == "bpe" else None)
    config = Config(name=source.resolve().name, model=model_config, head=DenseConfig(tied=tied), tokenizer=kept_config)
    model = build_lm(config)
    _fill(model, state, tied, source)
    with files.new_folder(run) as new:
        folder = RunFolder(new)
        folder.write_start(config, describe_environment(torch.device("cpu")))
        if isinstance(kept, BPETokenizer):
            kept.save(folder.tokenizer)
        write_checkpoint(folder.checkpoints, 0, pack(model, build_optimizer(config.optim, model), {}), keep=2)
        origin = {"imported_from": str(source), "import_notes": notes}
        write_json(folder.result, origin | {"state": COMPLETE, "trainer/step": 0})
    for note in notes:
        log.warning("note: %s", note)
    return run


def _fit_vocabulary(state: dict[str, Tensor], values: dict[str, Any], tokenizer: Tokenizer, source: Path) -> list[str]:
    """Cut the rows of `state` that have no token, and return what was done."""
    table = state.get("wte.weight")
    n_row = 0 if table is None else len(table)
    if n_row != values.get("vocab_size"):
        raise DataError(
            f"{source}: config.json says vocab_size {values.get('vocab_size')}, wte.weight has {n_row} rows"
        )
    size = tokenizer.vocab_size
    if n_row < size:
        raise DataError(f"{source} has a vocabulary of {n_row} ids, tokenizer {tokenizer.name} has {size}")
    notes = []
    if n_row > size:
        for name in ("wte.weight", "lm_head.weight"):
            if name in state:
                state[name] = state[name][:size].clone()
        notes.append(
            f"the vocabulary has {n_row} rows and tokenizer {tokenizer.name} {size} ids: the last {n_row - size} rows "
            "were left out, and their probability goes to the other tokens"
        )
    eos = values.get("eos_token_id")
    if eos is not None and eos != tokenizer.eot_id:
        notes.append(
            f"end-of-text is id {tokenizer.eot_id} of the tokenizer, and config.json says {eos}: check which is right"
        )
    return notes


def _is_tied(state: dict[str, Tensor], values: dict[str, Any], source: Path) -> bool:
    """Return whether the output layer is the input embedding, by its weights."""
    says_tied = bool(values.get("tie_word_embeddings", True))  # transformers' own default
    output = state.get("lm_head.weight")
    if output is None:
        if not says_tied:
            raise DataError(f"{source}: config.json says tie_word_embeddings false, and there is no lm_head.weight")
        return True
    equal = torch.equal(output, state["wte.weight"])
    if says_tied and not equal:
        raise DataError(
            f"{source}: config.json says that lm_head.weight is wte.weight (tie_word_embeddings), and the two differ: "
            "set it to false to keep both, or remove lm_head.weight from the weights"
        )
    return equal


def _fill(model: LanguageModel, state: dict[str, Tensor], tied: bool, source: Path) -> None:
    """Load tensors into the model, if their names and shapes are the model's."""
    state = {(k if k.startswith("lm_head.") else f"body.{k}"): v for k, v in state.items()}
    output = state.pop("lm_head.weight", None)
    state["head.weight"] = state["body.wte.weight"] if tied or output is None else output
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - state.keys())]
    wrong += [f"{name} is unknown" for name in sorted(state.keys() - expected.keys())]
    wrong += [
        f"{name} has the shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        first = "; ".join(line.replace("body.", "") for line in wrong[:5])
        raise DataError(f"{source} is not the model that its config.json describes: {first}")
    model.load_state_dict(state)
