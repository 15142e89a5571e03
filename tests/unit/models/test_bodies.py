"""Bodies against their twins in `transformers`, and the formulas against what is built.

Letters: B batch, T sequence, D width, V vocabulary.
"""

import dataclasses
import random
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2Model, GPTNeoConfig, GPTNeoModel
from transformers.models.gpt_neo import modeling_gpt_neo

from grouped_lm.config import ModelConfig
from grouped_lm.models import (
    LanguageModel,
    build_body,
    estimate_body_flops_per_token,
    estimate_body_params,
)
from grouped_lm.models.gpt_neo import NeoAttention, local_causal_mask

BODIES = ("gpt2", "gpt_neo")
PRESETS = sorted((Path(__file__).parents[3] / "conf" / "model").glob("*.yaml"))


def build_twin(config: ModelConfig, vocab_size: int) -> nn.Module:
    """Return the Hugging Face model of the same shape, without dropout."""
    if config.body == "gpt2":
        return GPT2Model(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=config.block_size,
                n_embd=config.n_embd,
                n_layer=config.n_layer,
                n_head=config.n_head,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                resid_pdrop=0.0,
            )
        )
    kinds = [["global", "local"][layer % 2] for layer in range(config.n_layer)]
    return GPTNeoModel(
        GPTNeoConfig(
            vocab_size=vocab_size,
            max_position_embeddings=config.block_size,
            hidden_size=config.n_embd,
            num_layers=config.n_layer,
            attention_types=[[kinds, 1]],
            num_heads=config.n_head,
            window_size=config.window_size,
        )
    )


def to_our_names(twin: dict[str, Tensor], body: str) -> dict[str, Tensor]:
    """Rename the twin's tensors as ours; GPT-2's Conv1D weights are transposed."""
    if body == "gpt_neo":
        return {name.replace("attn.attention.", "attn."): tensor for name, tensor in twin.items()}
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {name: tensor.T if name.endswith(conv1d) else tensor for name, tensor in twin.items()}


def random_config(body: str, seed: int) -> tuple[ModelConfig, int]:
    """Return a small config with odd sizes, and a vocabulary size."""
    rng = random.Random(seed)
    n_head = rng.choice([1, 2, 3, 5])
    config = ModelConfig(
        body=body,
        n_layer=rng.randint(2, 5),
        n_head=n_head,
        n_embd=n_head * rng.choice([3, 7, 9]),
        block_size=rng.randint(23, 40),
        window_size=rng.randint(4, 11),
    )
    return config, rng.randint(11, 60)


def randomize(model: nn.Module, seed: int) -> None:
    """Draw every parameter, biases and norms too, far from where initialisation puts them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
            parameter.copy_(noise + ("ln_" in name and name.endswith("weight")))


def functional_and_grads(model: nn.Module, hidden: Tensor, direction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return <direction, hidden> and its gradient by every parameter."""
    value = (hidden * direction).sum()
    value.backward()
    return value.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def parity_error(config: ModelConfig, vocab_size: int, n_tokens: int, dtype: torch.dtype, seed: int = 0) -> float:
    """Return the largest difference to the twin in states, functional and gradients.

    Relative to the largest value of each tensor, or to 1 where that is less.
    """
    ours, twin = (
        build_body(config, vocab_size).to(dtype).eval(),
        build_twin(config, vocab_size).to(dtype).eval(),
    )
    randomize(twin, seed)
    ours.load_state_dict(to_our_names(dict(twin.state_dict()), config.body))
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(vocab_size, (3, n_tokens), generator=generator)
    direction = torch.randn(3, n_tokens, config.n_embd, generator=generator, dtype=torch.float64).to(dtype)
    hidden, expected = ours(input_ids), twin(input_ids).last_hidden_state
    assert hidden.shape == (3, n_tokens, config.n_embd)
    value, grads = functional_and_grads(ours, hidden, direction)
    expected_value, twin_grads = functional_and_grads(twin, expected, direction)
    expected_grads = to_our_names(twin_grads, config.body)
    assert grads.keys() == expected_grads.keys() == dict(ours.named_parameters()).keys()
    pairs = [
        (hidden, expected),
        (value, expected_value),
        *((grads[key], expected_grads[key]) for key in grads),
    ]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1.0)).item() for a, b in pairs)


@pytest.fixture
def neo_twin_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the twin's attention, which casts queries and keys to fp32, take its scores in fp64 instead."""

    class Torch64:
        float32 = torch.float64

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    monkeypatch.setattr(modeling_gpt_neo, "torch", Torch64())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", ["one", "short", "full"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.usefixtures("neo_twin_in_fp64")
def test_states_and_gradients_equal_the_twins(body: str, length: str, seed: int) -> None:
    config, vocab_size = random_config(body, seed)
    # GPT-Neo's window lies above the short length and below the full one
    n_tokens = {"one": 1, "short": config.window_size - 1, "full": config.block_size}[length]
    assert parity_error(config, vocab_size, n_tokens, torch.float64, seed) < 1e-9


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.usefixtures("neo_twin_in_fp64")
def test_window_edge_equals_the_twins(offset: int) -> None:
    config, vocab_size = random_config("gpt_neo", 7)
    assert parity_error(config, vocab_size, config.window_size + offset, torch.float64) < 1e-9


@pytest.mark.parametrize("body", BODIES)
def test_fp32_equals_the_twin_as_it_is(body: str) -> None:
    config, vocab_size = random_config(body, 3)
    assert parity_error(config, vocab_size, config.block_size, torch.float32) < 1e-4


@pytest.mark.parametrize("body", BODIES)
def test_later_tokens_do_not_reach_earlier_states(body: str) -> None:
    config = ModelConfig(body=body, n_layer=3, n_head=3, n_embd=21, block_size=19, window_size=5)
    model = build_body(config, 13).double()
    randomize(model, 0)
    input_ids = torch.randint(13, (2, 19), generator=torch.Generator().manual_seed(0))
    before = model(input_ids)
    for t in (0, 7, 18):
        changed = input_ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 13
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-12)
        assert ((after - before)[:, t:].abs().amax(-1) > 1e-6).all()  # the global layers carry it to every later one


def test_local_layer_reaches_exactly_its_window() -> None:
    config = ModelConfig(body="gpt_neo", n_head=2, n_embd=6, window_size=4)
    attention = NeoAttention(config, window=4).double()
    randomize(attention, 0)
    x = torch.randn(1, 11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[:, 3] += 1
    reached = (attention(moved) - attention(x)).abs().amax(-1)[0] > 1e-9
    assert reached.nonzero().flatten().tolist() == [3, 4, 5, 6]


def test_local_mask_is_made_once_and_serves_training_after_inference() -> None:
    config = ModelConfig(body="gpt_neo", n_layer=2, n_head=2, n_embd=6, block_size=9, window_size=4)
    model, input_ids = build_body(config, 5), torch.zeros(1, 9, dtype=torch.int64)
    with torch.inference_mode():
        model(input_ids)
        mask = local_causal_mask(9, 4, input_ids.device)
    model(input_ids).sum().backward()
    assert local_causal_mask(9, 4, input_ids.device) is mask
    naive = torch.tensor([[i - 4 < j <= i for j in range(9)] for i in range(9)])
    assert torch.equal(mask, naive)
    assert not dict(model.named_buffers())


@pytest.mark.parametrize("body", BODIES)
def test_compiles_to_one_graph(body: str) -> None:
    config = ModelConfig(body=body, n_layer=2, n_head=2, n_embd=6, block_size=9, window_size=4)
    model, input_ids = build_body(config, 5), torch.arange(9)[None] % 5
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(input_ids), model(input_ids))


@pytest.mark.parametrize("body", BODIES)
def test_initialisation_has_the_twins_statistics(body: str) -> None:
    config = ModelConfig(body=body, n_layer=4, n_head=4, n_embd=64, block_size=80)
    torch.manual_seed(0)
    ours = dict(build_body(config, 300).named_parameters())
    twin = to_our_names(dict(build_twin(config, 300).named_parameters()), body)

    def by_kind(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        kinds = defaultdict(list)
        for name, parameter in parameters.items():
            kinds[".".join(part for part in name.split(".") if not part.isdigit())].append(parameter.flatten())
        return {kind: torch.cat(parts).detach() for kind, parts in kinds.items()}

    a, b = by_kind(ours), by_kind(twin)
    assert a.keys() == b.keys()
    for kind in a:
        assert a[kind].std().item() == pytest.approx(b[kind].std().item(), rel=0.05), kind
        assert a[kind].mean().item() == pytest.approx(b[kind].mean().item(), abs=1e-3), kind


@pytest.mark.parametrize("body", BODIES)
def test_the_last_layer_norm_starts_at_its_gain_and_nothing_else_changes(body: str) -> None:
    models = []
    for gain in (1.0, 3.0):
        torch.manual_seed(0)
        models.append(build_body(ModelConfig(body=body, n_layer=2, n_head=2, n_embd=8, ln_f_gain=gain), 20))
    input_ids = torch.arange(9)[None]
    assert dict(models[1].named_parameters())["ln_f.weight"].tolist() == [3.0] * 8
    torch.testing.assert_close(models[1](input_ids), 3 * models[0](input_ids))


@pytest.mark.parametrize("body", BODIES)
def test_dropout_only_in_training(body: str) -> None:
    config = ModelConfig(body=body, n_layer=2, n_head=2, n_embd=8, block_size=9, window_size=4, dropout=0.3)
    model, input_ids = build_body(config, 5), torch.arange(9)[None] % 5
    assert not torch.equal(model(input_ids), model(input_ids))
    model.eval()
    assert torch.equal(model(input_ids), model(input_ids))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert not torch.equal(model.train()(input_ids), model(input_ids))  # what is left drops attention itself


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("n_tokens", [0, 10])
def test_length_out_of_range_is_refused(body: str, n_tokens: int) -> None:
    config = ModelConfig(body=body, n_layer=1, n_head=1, n_embd=4, block_size=9)
    with pytest.raises(ValueError, match=rf"must be in \[1, 9\] \(model.block_size\), got {n_tokens}"):
        build_body(config, 5)(torch.zeros(1, n_tokens, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"model.block_size"):
        estimate_body_flops_per_token(config, n_tokens)


def test_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        build_body(ModelConfig(), 0)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_has_the_estimated_parameters(path: Path) -> None:
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    config = ModelConfig(**{str(key): value for key, value in values.items()})
    assert config.name == path.stem
    with torch.device("meta"):
        body = build_body(config, 50_257)
    counted = sum(p.numel() for p in body.parameters())
    assert counted == estimate_body_params(config, 50_257)
    embeddings = (50_257 + config.block_size) * config.n_embd
    outside = sum(p.numel() for name, p in body.named_parameters() if name.split(".")[0] not in ("wte", "wpe"))
    assert outside == counted - embeddings


def test_estimates_meet_the_published_counts() -> None:
    gpt2 = ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024)
    neo = ModelConfig(body="gpt_neo", n_layer=12, n_head=12, n_embd=768, block_size=2048)
    assert estimate_body_params(gpt2, 50_257) == 124_439_808  # openai-community/gpt2
    assert estimate_body_params(neo, 50_257) == 125_198_592  # EleutherAI/gpt-neo-125m
    assert {path.stem for path in PRESETS} >= {
        f"{body}-{size}m" for body in ("gpt2", "neo") for size in (1, 3, 8, 28, 33)
    }


@pytest.mark.parametrize("n_tokens", [3, 7, 17])
@pytest.mark.parametrize("body", BODIES)
def test_flops_are_those_of_the_matmuls(body: str, n_tokens: int) -> None:
    config = ModelConfig(body=body, n_layer=3, n_head=2, n_embd=6, block_size=17, window_size=7)
    with torch.device("meta"):
        model, input_ids = build_body(config, 5), torch.zeros(2, n_tokens, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids)
    counts = counter.get_flop_counts()["Global"]
    linear = sum(counts.get(op, 0) for op in (torch.ops.aten.addmm, torch.ops.aten.mm)) / (2 * n_tokens)
    spans = [7 if body == "gpt_neo" and layer % 2 else n_tokens for layer in range(3)]
    seen = sum(min(i + 1, span) for span in spans for i in range(n_tokens)) / n_tokens
    assert estimate_body_flops_per_token(config, n_tokens) == pytest.approx(linear + 4 * 6 * seen)


def test_language_model_hands_states_targets_and_options_to_its_head() -> None:
    class Head(nn.Module):
        def forward(self, hidden: Tensor, targets: Tensor, **kwargs: Any) -> SimpleNamespace:
            return SimpleNamespace(hidden=hidden, targets=targets, kwargs=kwargs)

    body = build_body(ModelConfig(n_layer=1, n_head=1, n_embd=4, block_size=9), 5)
    model, input_ids = LanguageModel(body, Head()), torch.arange(9)[None] % 5  # type: ignore[arg-type]
    out = model(input_ids, input_ids + 1, reduction="sum")
    assert torch.equal(out.hidden, body(input_ids))
    assert torch.equal(out.hidden, model.hidden(input_ids))
    assert torch.equal(out.targets, input_ids + 1)
    assert out.kwargs == {"reduction": "sum"}


@pytest.mark.parametrize("body", BODIES)
def test_unfused_attention_is_the_same_function(body: str) -> None:
    shape: dict[str, Any] = {"body": body, "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 17, "window_size": 5}
    torch.manual_seed(0)
    fused = build_body(ModelConfig(**shape), 11).double()
    unfused = build_body(ModelConfig(**shape, attention="unfused"), 11).double()
    unfused.load_state_dict(fused.state_dict())
    input_ids, target = torch.randint(11, (3, 17)), torch.randn(3, 17, 8, dtype=torch.float64)
    states = [model(input_ids) for model in (fused, unfused)]
    # the softmax of scores is taken in fp32, as in `transformers`
    torch.testing.assert_close(states[0], states[1], rtol=1e-6, atol=1e-6)
    for out in states:
        (out - target).pow(2).sum().backward()
    for one, other in zip(fused.parameters(), unfused.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", BODIES)
def test_activation_checkpointing_keeps_less_and_changes_no_bit(body: str) -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        config = ModelConfig(body=body, n_layer=3, n_head=2, n_embd=8, block_size=9, dropout=0.2, window_size=4)
        model = build_body(dataclasses.replace(config, activation_checkpointing=again), 5).train()
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            states = model(torch.arange(18).view(2, 9) % 5)
        inside = sum(t.numel() for t in kept)
        found.append((states, torch.autograd.grad(states.square().sum(), list(model.parameters())), inside))
    (plain, plain_gradients, plain_kept), (states, gradients, kept_between) = found
    assert torch.equal(states, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain_gradients, strict=True))
    assert kept_between < plain_kept / 3
