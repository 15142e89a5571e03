"""The heads of exported models, without an export."""

import pytest
import torch

pytest.importorskip("transformers")
from grouped_lm.hf.modeling_gvc import HEADS, GvcConfig, GvcForCausalLM

SIZES = {"n_group": 4, "group_size": 3, "tied": True, "bias": True, "directions": 1}
MORE = {"trim": {"n_seen": 7}, "adaptive": {"cutoffs": [3], "div_value": 2.0}, "low_rank": {"rank": 2, "tied": False}}


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_no_texts_give_no_logits(name):
    body = {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GvcForCausalLM(GvcConfig(body, {"name": name} | SIZES | MORE.get(name, {}))).eval()
    places = torch.arange(11)
    for table, values in {"token_to_group": places // 3, "token_to_slot": places % 3, "rank": places}.items():
        if hasattr(model.head, table):
            getattr(model.head, table).copy_(values)
    assert model.head(torch.zeros(0, 8), model.get_input_embeddings().weight).shape == (0, 11)
    assert model(torch.zeros(2, 5, dtype=torch.int64)).logits.shape == (2, 5, 11)
    assert model(inputs_embeds=torch.zeros(2, 5, 8), logits_to_keep=torch.arange(0)).logits.shape == (2, 0, 11)
