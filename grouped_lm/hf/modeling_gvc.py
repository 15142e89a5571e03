"""A transformers model with a compressed output layer (arXiv 2411.06371): body of GPT-2 or GPT-Neo, two-step softmax.

This file travels with exported checkpoints and needs torch and transformers alone. Its logits are log-probabilities
of all tokens, exact and normalised, so that whatever works on logits works on them.

Letters: N states, D width, V vocabulary, K tokens alone in the first step, G groups, S slots per group.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class GvcConfig(PretrainedConfig):
    """`body`: the config of a transformers body, with its model_type; `head`: name and sizes of the output layer."""

    model_type = "gvc"
    has_no_defaults_at_init = True

    def __init__(self, body: dict | None = None, head: dict | None = None, **kwargs: Any) -> None:
        self.body, self.head = body or {"model_type": "gpt2"}, head or {"name": "grouped"}
        body_config = AutoConfig.for_model(**self.body)
        self.vocab_size, self.hidden_size = body_config.vocab_size, body_config.hidden_size
        self.num_hidden_layers = body_config.num_hidden_layers
        self.num_attention_heads = body_config.num_attention_heads
        self.max_position_embeddings = body_config.max_position_embeddings
        super().__init__(**kwargs)


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
        place = self.token_to_group * logits.shape[2] + self.token_to_slot
        phantom = torch.full_like(logits[0].flatten(), -torch.inf, dtype=torch.float32).index_fill(0, place, 0.0)
        inside = (logits.float() + phantom.view_as(logits[0])).log_softmax(-1)
        first = self.group(states).float().log_softmax(-1)
        return (first.unsqueeze(-1) + inside).flatten(1)[:, place]


class RowsHead(nn.Module):
    """class_full and shortlist: a row of weights per token, K tokens beside the groups in the first step."""

    token_to_group: Tensor
    token_to_slot: Tensor
    reserved: Tensor
    """(H,) log-probabilities of the last groups, whose tokens the training text never had."""

    def __init__(
        self,
        width: int,
        vocab: int,
        name: str,
        n_group: int,
        tied: bool,
        directions: int = 1,
        own_shortlist: bool = False,
        shortlist_size: int = 0,
        n_reserved: int = 0,
        **_: Any,
    ) -> None:
        super().__init__()
        self.name, self.n_group = name, n_group
        self.weight = None if tied else nn.Parameter(torch.zeros(vocab, width))
        self.bias = nn.Parameter(torch.zeros(vocab))
        self.shortlist_weight = nn.Parameter(torch.zeros(shortlist_size, width)) if own_shortlist else None
        if name == "class_full":
            self.group = nn.Linear(width, n_group)
        else:
            self.directions = nn.Parameter(torch.zeros(n_group - n_reserved, directions, width))
            self.group_bias = nn.Parameter(torch.zeros(n_group - n_reserved, directions))
        self.register_buffer("reserved", torch.zeros(n_reserved), persistent=n_reserved > 0)
        self.register_buffer("token_to_group", torch.zeros(vocab, dtype=torch.int64))
        self.register_buffer("token_to_slot", torch.zeros(vocab, dtype=torch.int64))

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of (N, D) states."""
        logits = F.linear(states, embedding if self.weight is None else self.weight, self.bias).float()
        if self.name == "class_full":
            groups = self.group(states).float()
        else:
            groups = torch.einsum("nd,grd->ngr", states, self.directions).add(self.group_bias).float().logsumexp(-1)
        alone: Tensor = self.token_to_group < 0
        if self.shortlist_weight is not None:
            order = self.token_to_slot[alone]
            logits[:, alone] = F.linear(states, self.shortlist_weight[order], self.bias[alone]).float()
        first = torch.cat([logits[:, alone], groups], dim=1).logsumexp(1, keepdim=True)
        first = first - torch.log1p(-self.reserved.exp().sum())
        groups = torch.cat([groups, self.reserved + first], dim=1)
        if not self.n_group:
            return logits - first
        width = int(self.token_to_slot[~alone].max()) + 1
        members = torch.full((self.n_group, width), -1, device=states.device)
        members[self.token_to_group[~alone], self.token_to_slot[~alone]] = (~alone).nonzero().squeeze(1)
        inside = logits[:, members.clamp_min(0)].masked_fill(members < 0, -torch.inf).logsumexp(-1)
        of_group = (groups - inside)[
            :, self.token_to_group.clamp_min(0)
        ]  # log p(group) up to `first`, less the sum in it
        return logits + of_group.masked_fill(alone, 0.0) - first


class AdaptiveHead(nn.Module):
    """adaptive: torch's own, on ids sorted by frequency."""

    rank: Tensor

    def __init__(self, width: int, vocab: int, cutoffs: list, div_value: float, **_: Any) -> None:
        super().__init__()
        self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(width, vocab, cutoffs, div_value)
        self.register_buffer("rank", torch.zeros(vocab, dtype=torch.int64))

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of (N, D) states."""
        return self.adaptive.log_prob(states)[:, self.rank].float()


HEADS = {
    "grouped": GroupedHead,
    "film": GroupedHead,
    "class_full": RowsHead,
    "shortlist": RowsHead,
    "adaptive": AdaptiveHead,
}


class GvcForCausalLM(PreTrainedModel, GenerationMixin):
    """Body and compressed head. `logits` are log-probabilities; `loss` is the exact negative log-likelihood."""

    config_class = GvcConfig
    base_model_prefix = "transformer"

    def __init__(self, config: GvcConfig) -> None:
        super().__init__(config)
        self.transformer = AutoModel.from_config(AutoConfig.for_model(**config.body))
        self.head = HEADS[config.head["name"]](config.hidden_size, config.vocab_size, **config.head)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every weight comes from the checkpoint."""

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As every causal LM of transformers; `logits_to_keep` limits the V-wide part to the last positions."""
        body = {
            key: value for key, value in kwargs.items() if key in ("position_ids", "inputs_embeds", "cache_position")
        }
        output = self.transformer(
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            use_cache=use_cache,
            return_dict=True,
            **body,
        )
        hidden = output.last_hidden_state
        hidden = hidden[:, -logits_to_keep:] if logits_to_keep and labels is None else hidden
        logits = self.head(hidden.flatten(0, 1), self.transformer.wte.weight).view(*hidden.shape[:2], -1)
        loss = None
        if labels is not None:
            loss = F.nll_loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)
