"""A transformers model with a compressed output layer (arXiv 2411.06371) on the body of GPT-2 or GPT-Neo.

This file is copied into exported folders and needs torch and transformers alone. Its logits are the exact, normalised
log-probabilities of all tokens in fp32, so everything that works on logits works on them.

Letters: B batch, T sequence, N states, D width, V vocabulary, K tokens without a group, G groups, S slots per group.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple


class GvcConfig(PretrainedConfig):
    """The configs of the body, of transformers or its values with their model_type, and of the head: name and sizes."""

    model_type = "gvc"
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    sub_configs: ClassVar[dict[str, type]] = {"body": AutoConfig}

    def __init__(
        self, body: PretrainedConfig | dict[str, Any] | None = None, head: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        values = {"model_type": "gpt2"} if body is None else body
        self.body = AutoConfig.for_model(**values) if isinstance(values, dict) else values
        self.head = head or {"name": "grouped"}
        self.vocab_size, self.hidden_size = self.body.vocab_size, self.body.hidden_size
        self.num_hidden_layers = self.body.num_hidden_layers
        self.num_attention_heads = self.body.num_attention_heads
        self.max_position_embeddings = self.body.max_position_embeddings
        super().__init__(**kwargs)


def at_least_fp32(logits: Tensor) -> Tensor:
    """Return fp16 and bf16 logits as fp32, so that probabilities sum to 1 within 1e-6."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class DenseHead(nn.Module):
    """dense and sampled: the full softmax of W h + b; low_rank: that of W (A h) + b."""

    def __init__(self, width: int, vocab: int, tied: bool, bias: bool, rank: int | None = None, **_: Any) -> None:
        super().__init__()
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.weight = None if tied else nn.Parameter(torch.zeros(vocab, rank or width))
        self.bias = nn.Parameter(torch.zeros(vocab)) if bias else None

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of (N, D) states."""
        states = states if self.down is None else self.down(states)
        weight = embedding if self.weight is None else self.weight
        return at_least_fp32(F.linear(states, weight, self.bias)).log_softmax(-1)


class TrimHead(nn.Module):
    """trim: a softmax over the tokens of the training text and one class that all other tokens share equally."""

    token_to_class: Tensor
    seen: Tensor

    def __init__(self, width: int, vocab: int, n_seen: int, tied: bool, bias: bool, **_: Any) -> None:
        super().__init__()
        self.n_seen, self.n_rest = n_seen, vocab - n_seen
        n_class = n_seen + (self.n_rest > 0)
        self.weight = None if tied else nn.Parameter(torch.zeros(n_seen, width))
        self.rest = nn.Parameter(torch.zeros(1, width)) if self.n_rest else None
        self.bias = nn.Parameter(torch.zeros(n_class)) if bias else None
        self.register_buffer("token_to_class", torch.zeros(vocab, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(n_seen, dtype=torch.int64))

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of (N, D) states."""
        rows = embedding[self.seen] if self.weight is None else self.weight
        rows = rows if self.rest is None else torch.cat([rows, self.rest])
        joint = at_least_fp32(F.linear(states, rows, self.bias)).log_softmax(-1)[:, self.token_to_class]
        if not self.n_rest:
            return joint
        share = torch.tensor(float(self.n_rest), device=joint.device, dtype=joint.dtype).log()
        return joint - share * (self.token_to_class == self.n_seen)


class GroupedHead(nn.Module):
    """grouped: scale[g] * (W_s h) + shift[g]; film: W_s (scale[g] * h + shift[g]) + bias[g]."""

    token_to_group: Tensor
    token_to_slot: Tensor

    def __init__(self, width: int, vocab: int, name: str, n_group: int, group_size: int, **_: Any) -> None:
        super().__init__()
        self.name, inner = name, width if name == "film" else group_size
        self.group = nn.Linear(width, n_group)
        self.slot = nn.Linear(width, group_size, bias=False)
        self.scale = nn.Parameter(torch.ones(n_group, inner))
        self.shift = nn.Parameter(torch.zeros(n_group, inner))
        if name == "film":
            self.bias = nn.Parameter(torch.zeros(n_group, group_size))
        self.register_buffer("token_to_group", torch.zeros(vocab, dtype=torch.int64))
        self.register_buffer("token_to_slot", torch.zeros(vocab, dtype=torch.int64))

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of (N, D) states."""
        if self.name == "film":
            logits = self.slot(self.scale * states.unsqueeze(1) + self.shift) + self.bias
        else:
            logits = self.scale * self.slot(states).unsqueeze(1) + self.shift
        place = self.token_to_group.long() * logits.shape[2] + self.token_to_slot
        padding = torch.ones(logits.shape[1:].numel(), dtype=torch.bool, device=logits.device)
        padding = padding.index_fill(0, place, False).view(logits.shape[1:])
        inside = at_least_fp32(logits).masked_fill(padding, -torch.inf).log_softmax(-1)
        first = at_least_fp32(self.group(states)).log_softmax(-1)
        return (first.unsqueeze(-1) + inside).flatten(1)[:, place]


class RowsHead(nn.Module):
    """class_full and shortlist: a row of weights per token, K tokens beside the groups in the first softmax."""

    token_to_group: Tensor
    token_to_slot: Tensor
    reserved: Tensor
    """(H,) log-probabilities of the last groups, whose tokens do not occur in the training text."""

    def __init__(self, width: int, vocab: int, name: str, n_group: int, tied: bool, **sizes: Any) -> None:
        super().__init__()
        self.name, self.n_group = name, n_group
        self.weight = None if tied else nn.Parameter(torch.zeros(vocab, width))
        self.bias = nn.Parameter(torch.zeros(vocab))
        own_rows = sizes.get("shortlist_size", 0) if sizes.get("own_shortlist") else None
        self.shortlist_weight = None if own_rows is None else nn.Parameter(torch.zeros(own_rows, width))
        n_reserved = sizes.get("n_reserved", 0)
        if name == "class_full":
            self.group = nn.Linear(width, n_group)
        else:
            shape = n_group - n_reserved, sizes.get("directions", 1)
            self.directions = nn.Parameter(torch.zeros(*shape, width))
            self.group_bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("reserved", torch.zeros(n_reserved), persistent=n_reserved > 0)
        self.register_buffer("token_to_group", torch.zeros(vocab, dtype=torch.int64))
        self.register_buffer("token_to_slot", torch.zeros(vocab, dtype=torch.int64))

    def group_logits(self, states: Tensor) -> Tensor:
        """Return the (N, G - H) logits of the groups in the first softmax."""
        if self.name == "class_full":
            return at_least_fp32(self.group(states))
        logits = torch.einsum("nd,grd->ngr", states, self.directions) + self.group_bias
        return at_least_fp32(logits).logsumexp(-1)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of (N, D) states."""
        logits = at_least_fp32(F.linear(states, embedding if self.weight is None else self.weight, self.bias))
        groups, is_single = self.group_logits(states), self.token_to_group < 0
        if self.shortlist_weight is not None:
            rows = self.shortlist_weight[self.token_to_slot[is_single].long()]
            own = at_least_fp32(F.linear(states, rows, self.bias[is_single]))
            logits = logits.index_copy(1, is_single.nonzero().squeeze(1), own)
        norm = torch.cat([logits[:, is_single], groups], dim=1).logsumexp(1, keepdim=True)
        reserved = self.reserved.to(logits.dtype)
        norm = norm - torch.log1p(-reserved.exp().sum())
        if not self.n_group:
            return logits - norm
        groups = torch.cat([groups, reserved + norm], dim=1)
        in_groups = (~is_single).nonzero().squeeze(1)
        group, slot = self.token_to_group[in_groups].long(), self.token_to_slot[in_groups].long()
        members = torch.full((self.n_group, int(slot.max()) + 1), -1, device=states.device)
        members[group, slot] = in_groups
        inside = logits[:, members.clamp_min(0)].masked_fill(members < 0, -torch.inf).logsumexp(-1)
        # log p(group) + norm - log(sum in the group), added to the logit of each token of the group
        shift = (groups - inside)[:, self.token_to_group.long().clamp_min(0)].masked_fill(is_single, 0.0)
        return logits + shift - norm


class AdaptiveHead(nn.Module):
    """adaptive: the modules of torch's adaptive softmax, on ids sorted by frequency."""

    rank: Tensor

    def __init__(self, width: int, vocab: int, cutoffs: list[int], div_value: float, **more: Any) -> None:
        super().__init__()
        self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(width, vocab, cutoffs, div_value, more.get("bias", False))
        tails: Any = self.adaptive.tail if more.get("bias") else ()
        for tail in tails:
            tail[1].bias = nn.Parameter(torch.zeros(tail[1].out_features))
        self.register_buffer("rank", torch.zeros(vocab, dtype=torch.int64))

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of (N, D) states; torch's `log_prob` is not exact in bf16."""
        first = at_least_fp32(self.adaptive.head(states)).log_softmax(-1)
        n_single = first.shape[1] - len(self.adaptive.tail)
        inside = [at_least_fp32(tail(states)).log_softmax(-1) for tail in self.adaptive.tail]
        clusters = [part + first[:, n_single + index, None] for index, part in enumerate(inside)]
        return torch.cat([first[:, :n_single], *clusters], dim=1)[:, self.rank.long()]


def add_reserve(log_prob: Tensor, head: Any) -> Tensor:
    """Return (N, V) log-probabilities with the head's share for the tokens that its training text did not have."""
    if not hasattr(head, "reserve_share"):
        return log_prob
    share = at_least_fp32(head.reserve_share).to(log_prob.dtype)
    kept, each = log_prob + torch.log1p(-share), (share / head.unseen.sum().clamp_min(1)).log()
    each = torch.where(head.unseen, each, kept.detach())  # the sum of two infinities would have NaN gradients
    return torch.where(head.unseen, torch.logaddexp(kept, each), kept)


HEADS = {
    "dense": DenseHead,
    "low_rank": DenseHead,
    "trim": TrimHead,
    "grouped": GroupedHead,
    "film": GroupedHead,
    "class_full": RowsHead,
    "shortlist": RowsHead,
    "adaptive": AdaptiveHead,
}
CONFIG_FLAGS = ("output_hidden_states", "output_attentions")
LOSS_OPTIONS = ("num_items_in_batch", "ignore_index", "shift_labels")
BODY_OUTPUTS = ("past_key_values", "hidden_states", "attentions")


class GvcForCausalLM(PreTrainedModel, GenerationMixin):
    """Body and head. `logits` are log-probabilities; `loss` is the exact negative log-likelihood in nats."""

    config_class = GvcConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPT2Block", "GPTNeoBlock"]  # noqa: RUF012 - transformers types it so
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True  # the body has the last word

    def __init__(self, config: GvcConfig) -> None:
        super().__init__(config)
        self.transformer = AutoModel.from_config(config.body)
        sizes = {"width": config.hidden_size, "vocab": config.vocab_size} | config.head
        self.head = HEADS[config.head["name"]](**sizes)
        if config.head.get("reserve"):
            self.head.register_buffer("unseen", torch.zeros(config.vocab_size, dtype=torch.bool))
            self.head.register_buffer("reserve_share", torch.zeros(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every weight comes from the checkpoint."""

    @classmethod
    def _from_config(cls, config: GvcConfig, **kwargs: Any) -> "GvcForCausalLM":
        raise ValueError(
            "a config does not say which token is in which group: load weights with from_pretrained, or train a new "
            "model with gvc train"
        )

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the table of the body."""
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of the body, which a tied head reads too."""
        self.transformer.set_input_embeddings(value)

    def get_output_embeddings(self) -> None:
        """Return None: no linear layer gives the logits."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Return the input embedding.

        Raises:
            ValueError: another size, which would need a group and a slot for each new token.
        """
        size = new_num_tokens or self.config.vocab_size
        size = -(-size // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        if size != self.config.vocab_size:
            raise ValueError(
                f"the {self.config.head['name']} head is built for {self.config.vocab_size} tokens and cannot be "
                f"resized to {size}: train with the larger vocabulary, or export a dense head"
            )
        return self.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return loss, logits, cache, and on request hidden states and attentions, as GPT-2 of transformers does.

        Args:
            input_ids: (B, T).
            past_key_values: the cache of the tokens before these.
            attention_mask: (B, T with the cached tokens), 0 at padding on either side.
            position_ids: (B, T); None counts the tokens that the mask keeps.
            inputs_embeds: (B, T, D) in place of `input_ids`.
            labels: (B, T) ids at the same places as in `input_ids`, -100 where ignored.
            use_cache: whether a cache is returned.
            logits_to_keep: last positions, or their indices, that get logits; 0 is all. Labels need all.
            kwargs: for body and loss, such as `output_hidden_states` and `num_items_in_batch`.

        Raises:
            ValueError: more tokens than the model has positions; attentions from a kernel that does not give them; or a
                static cache with GPT-Neo, whose attention in transformers gives wrong numbers with it.
        """
        kwargs = {name: getattr(self.config, name, False) for name in CONFIG_FLAGS} | kwargs
        use_cache = getattr(self.config, "use_cache", None) if use_cache is None else use_cache
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        n_cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = positions_of(attention_mask, inputs, n_cached)
        self._check_inputs(position_ids, inputs, n_cached, past_key_values)
        output = self.transformer(
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **{name: value for name, value in kwargs.items() if name not in LOSS_OPTIONS},
        )
        if kwargs.get("output_attentions") and not output.attentions:
            raise ValueError(
                "output_attentions=True needs from_pretrained(..., attn_implementation='eager'): "
                f"{self.transformer.config._attn_implementation} does not return attentions"
            )
        hidden = output.last_hidden_state
        if labels is None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            hidden = hidden[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        table = self.get_input_embeddings().weight
        vocab = self.config.vocab_size
        logits = add_reserve(self.head(hidden.flatten(0, 1), table), self.head).view(*hidden.shape[:2], vocab)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=vocab, **kwargs)
        return CausalLMOutputWithPast(loss, logits, *(output.get(name) for name in BODY_OUTPUTS))

    def _check_inputs(self, position_ids: Tensor | None, inputs: Tensor | None, n_cached: int, cache: Any) -> None:
        if self.config.body.model_type == "gpt_neo" and getattr(cache, "is_compileable", False):
            raise ValueError("GPT-Neo of transformers gives wrong numbers with a static cache: use the dynamic one")
        limit, n_token = self.config.max_position_embeddings, n_cached + (0 if inputs is None else inputs.shape[1])
        if n_token <= limit:
            return  # the usual case reads no numbers from the device
        n_token = n_token if position_ids is None else int(position_ids.max()) + 1
        if n_token > limit:
            raise ValueError(f"the model reads at most {limit} tokens, got {n_token}: take a shorter prompt or text")


def positions_of(attention_mask: Tensor | None, inputs: Tensor | None, n_cached: int) -> Tensor | None:
    """Return (B, T) positions that count only the tokens that the mask keeps; None without a mask of all tokens.

    `attention_mask` is (B, n_cached + T), 0 at padding; `inputs` are (B, T) ids or (B, T, D) embeddings.
    """
    if attention_mask is None or inputs is None or attention_mask.shape[1:] != (n_cached + inputs.shape[1],):
        return None
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, n_cached:]


# A saved copy brings this file along, and Trainer shifts labels for the models of this table alone.
GvcConfig.register_for_auto_class()
GvcForCausalLM.register_for_auto_class("AutoModelForCausalLM")
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("gvc", "GvcForCausalLM")
