"""Weights and configs of our bodies under the names of transformers, and back.

Letters: D width, L layers.
"""

import re
from typing import Any

from torch import Tensor

from grouped_lm.config import ModelConfig
from grouped_lm.errors import DataError
from grouped_lm.models.gpt2 import LAYER_NORM_EPS

CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
"""GPT-2's projections there are Conv1D: the transpose of a linear layer's weight."""


def body_to_hf(state: dict[str, Tensor], body: str) -> dict[str, Tensor]:
    """Return a body's tensors, names as in ours without `body.`, under the names of `GPT2Model` or `GPTNeoModel`."""
    if body == "gpt_neo":
        return {re.sub(r"(h\.\d+\.attn)\.", r"\1.attention.", name): tensor for name, tensor in state.items()}
    return {name: tensor.T.contiguous() if CONV1D.fullmatch(name) else tensor for name, tensor in state.items()}


def body_from_hf(state: dict[str, Tensor], body: str) -> dict[str, Tensor]:
    """Undo `body_to_hf`; buffers of masks that old checkpoints carry are left out."""
    plain = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    masks = re.compile(r"h\.\d+\.attn(\.attention)?\.(masked_)?bias")
    plain = {name: tensor for name, tensor in plain.items() if not masks.fullmatch(name)}
    if body == "gpt_neo":
        return {name.replace(".attn.attention.", ".attn."): tensor for name, tensor in plain.items()}
    return {name: tensor.T.contiguous() if CONV1D.fullmatch(name) else tensor for name, tensor in plain.items()}


def config_to_hf(model: ModelConfig, vocab_size: int, eot_id: int, tied: bool) -> dict[str, Any]:
    """Return config.json of a body with a dense head, for `GPT2LMHeadModel` or `GPTNeoForCausalLM`."""
    shared = {
        "vocab_size": vocab_size,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "activation_function": "gelu_new",
        "tie_word_embeddings": tied,
        "dtype": "float32",
    }
    if model.body == "gpt2":
        return shared | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": model.block_size,
            "n_embd": model.n_embd,
            "n_layer": model.n_layer,
            "n_head": model.n_head,
            "resid_pdrop": model.dropout,
            "embd_pdrop": model.dropout,
            "attn_pdrop": model.dropout,
        }
    pairs, odd = divmod(model.n_layer, 2)
    layers = [[["global", "local"], pairs]] if pairs else []
    return shared | {
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "max_position_embeddings": model.block_size,
        "hidden_size": model.n_embd,
        "num_layers": model.n_layer,
        "num_heads": model.n_head,
        "attention_types": [*layers, *([[["global"], 1]] if odd else [])],
        "window_size": model.window_size,
        "resid_dropout": model.dropout,
        "embed_dropout": model.dropout,
        "attention_dropout": model.dropout,
    }


def config_from_hf(values: dict[str, Any], name: str) -> ModelConfig:
    """Return the body that config.json describes.

    Raises:
        DataError: an architecture other than GPT-2 and GPT-Neo, or an option of theirs that our bodies lack.
    """
    kind = values.get("model_type")
    if kind not in ("gpt2", "gpt_neo"):
        raise DataError(f"only gpt2 and gpt_neo checkpoints can be imported, this one is {kind!r}")
    keys = {
        "gpt2": ("n_embd", "n_layer", "n_head", "n_positions", "n_inner"),
        "gpt_neo": ("hidden_size", "num_layers", "num_heads", "max_position_embeddings", "intermediate_size"),
    }[kind]
    sizes = [values.get(key) for key in keys[:4]]
    width, n_layer, n_head, block_size = (size if isinstance(size, int) else 0 for size in sizes)
    if not all((width, n_layer, n_head, block_size)):
        raise DataError(f"config.json lacks one of {', '.join(keys[:4])}")
    allowed = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (LAYER_NORM_EPS,),
        keys[4]: (None, 4 * width),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    }
    odd = [
        f"{key}={values[key]!r} (gvc has {' or '.join(map(str, known))})"
        for key, known in allowed.items()
        if values.get(key, known[0]) not in known
    ]
    try:
        layers = [layer for names, count in values.get("attention_types", []) for layer in list(names) * count]
    except (TypeError, ValueError) as error:
        raise DataError(f"attention_types of config.json must be pairs of names and a count: {error}") from error
    if layers != ["global", "local"] * (len(layers) // 2) + ["global"] * (len(layers) % 2):
        odd.append("attention_types (gvc has global and local layers in turn, global first)")
    if odd:
        raise DataError(f"gvc has no body like this checkpoint: {', '.join(odd)}")
    window = {"window_size": values.get("window_size", 256)} if kind == "gpt_neo" else {}
    return ModelConfig(
        name=name, body=kind, n_embd=width, n_layer=n_layer, n_head=n_head, block_size=block_size, **window
    )
