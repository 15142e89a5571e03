"""Weights and configs of our bodies under the names of transformers, and back; heads as `modeling_gvc.py` builds them.

Letters: D width, L layers, V vocabulary, G groups, H of them reserved, R directions per group.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.config import ModelConfig
from grouped_lm.errors import ConfigError, DataError
from grouped_lm.heads import (
    HEADS,
    AdaptiveHead,
    DenseHead,
    Head,
    LowRankHead,
    SampledHead,
    ScaledHead,
    ShortlistHead,
    TrimHead,
)
from grouped_lm.heads.reserve import ReserveMixin
from grouped_lm.heads.two_level import TwoLevelHead
from grouped_lm.models.gpt2 import LAYER_NORM_EPS
from grouped_lm.runs.train_state import named_state

CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
"""GPT-2's projections there are Conv1D: the transpose of a linear layer's weight."""
TRAINING_ONLY = ("log_q", "sharing", "parts")
"""Buffers that decide how a head is trained; its probabilities do not need them."""
NAMES = {head: name for name, (_, head) in HEADS.items()}
KEYS = {
    "gpt2": ("n_embd", "n_layer", "n_head", "n_positions", "n_inner"),
    "gpt_neo": ("hidden_size", "num_layers", "num_heads", "max_position_embeddings", "intermediate_size"),
}
"""Width, layers, attention heads, positions and width of the MLP in config.json."""


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
    sizes = (model.n_embd, model.n_layer, model.n_head, model.block_size)
    shared |= {"model_type": model.body, **dict(zip(KEYS[model.body], sizes, strict=False))}
    if model.body == "gpt2":
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout)
        return shared | {"architectures": ["GPT2LMHeadModel"]} | dropout
    pairs, odd = divmod(model.n_layer, 2)
    layers = [[["global", "local"], pairs]] if pairs else []
    return shared | {
        "architectures": ["GPTNeoForCausalLM"],
        "attention_types": [*layers, *([[["global"], 1]] if odd else [])],
        "window_size": model.window_size,
        **dict.fromkeys(("resid_dropout", "embed_dropout", "attention_dropout"), model.dropout),
    }


def config_from_hf(values: dict[str, Any], name: str) -> ModelConfig:
    """Return the body that config.json describes.

    Raises:
        DataError: an architecture other than GPT-2 and GPT-Neo, or an option of theirs that our bodies lack.
    """
    kind = values.get("model_type")
    if kind not in ("gpt2", "gpt_neo"):
        own = ", an export of gvc: use the run folder that it was made from" if kind == "gvc" else ""
        raise DataError(f"only gpt2 and gpt_neo checkpoints can be imported, this one is {kind!r}{own}")
    keys = KEYS[kind]
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


@torch.no_grad()
def head_to_hf(head: Head, table: Tensor | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the sizes and the tensors that `modeling_gvc.py` needs to build the head.

    A head that shares `table`, the (V, D) weight of the input embedding, gets `tied` and no weight of its own.
    """
    tied = table is not None and getattr(head, "weight", None) is table
    kind = next((NAMES[base] for base in type(head).__mro__ if base in NAMES), None)
    sizes = {"name": kind, "tied": tied} | _sizes(head)
    if isinstance(head, ReserveMixin):
        sizes["reserve"] = True
    state = {name: tensor for name, tensor in named_state(head).items() if name not in TRAINING_ONLY}
    if tied:
        del state["weight"]
    if isinstance(head, ScaledHead) and head.variance_scale is not None:
        raise ConfigError("a head with head.second_order=true cannot be exported: train it without that")
    if isinstance(head, ShortlistHead):
        rows, _ = head.class_layer(head.weight[head.class_row_ids()])
        directions = rows[head.shortlist_size :].view(*head.group_bias.shape, head.n_embd)
        # (G - H, R, D), the mean rows of their groups added
        state |= {"directions": directions, "group_bias": head.group_bias}
    if isinstance(head, ScaledHead):
        state = {name: tensor for name, tensor in state.items() if name not in ("scale", "shift")}
        state["weight"], state["bias"] = head.inner_table()
        sizes["tied"] = False
    if isinstance(head, TrimHead):
        state["seen"] = head.seen
        if not head.n_rest:
            del state["rest"]
    return sizes, state


def _sizes(head: Any) -> dict[str, Any]:
    if isinstance(head, DenseHead | SampledHead):
        return {"name": "dense", "bias": head.bias is not None}
    if isinstance(head, LowRankHead):
        return {"rank": head.rank, "bias": head.bias is not None}
    if isinstance(head, TrimHead):
        return {"n_seen": head.seen.numel(), "bias": head.bias is not None}
    if isinstance(head, AdaptiveHead):
        return {
            "cutoffs": head.adaptive.cutoffs[:-1],
            "div_value": head.adaptive.div_value,
            "bias": head.adaptive.head_bias,
        }
    if isinstance(head, ShortlistHead):
        return {
            "n_group": head.n_group,
            "directions": head.group_bias.shape[1],
            "shortlist_size": head.shortlist_size,
            "own_shortlist": head.shortlist_weight is not None,
            "n_reserved": head.reserved.numel(),
        }
    if isinstance(head, TwoLevelHead):
        return {"n_group": head.n_group, "group_size": head.group_size}
    raise ConfigError(f"head {type(head).__name__} cannot be exported; there are {', '.join(HEADS)}")


def shared_table(body: Any) -> Tensor | None:
    """Return the (V, D) weight of a body's input embedding `wte`, None where that is no table."""
    return body.wte.weight if isinstance(body.wte, nn.Embedding) else None
