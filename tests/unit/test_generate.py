"""Writing texts: cached equals uncached, past the block too; ends, stops, characters of many bytes, penalties."""

import pytest
import torch

from grouped_lm.config import Config, ModelConfig, TokenizerConfig
from grouped_lm.data.tokenizers.base import BytesTokenizer
from grouped_lm.errors import ConfigError
from grouped_lm.generate import Context, Sampling, TextStream, next_tokens, write_texts
from grouped_lm.heads import ClassFullConfig, DenseConfig, GroupedConfig
from grouped_lm.heads.decoding.truncation import Truncation
from grouped_lm.models.gpt2 import KVCache
from grouped_lm.models.lm import build_lm

TOKENIZER = BytesTokenizer()
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=1.0, truncation=Truncation(top_p=0.9)),
    Sampling(temperature=1.3),
    Sampling(temperature=0.8, repetition_penalty=1.5),
    Sampling(temperature=0, repetition_penalty=1.5),
]


def small_model(body: str = "gpt2", head=None, block_size: int = 24):
    torch.manual_seed(0)
    shape = ModelConfig(body=body, n_layer=3, n_head=2, n_embd=16, block_size=block_size, window_size=5)
    model = build_lm(Config(model=shape, head=head or GroupedConfig(), tokenizer=TokenizerConfig(name="bytes"))).eval()
    for parameter in model.parameters():  # sharper than a fresh model, whose tokens are all alike
        parameter.data.mul_(3).add_(0.1 * torch.randn_like(parameter))
    return model


def write(model, prompt="Once upon", seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return write_texts(model, TOKENIZER, prompt, generator=generator, **options)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("head", [DenseConfig(), GroupedConfig(), ClassFullConfig()], ids=lambda c: c.name)
@pytest.mark.parametrize("body", ["gpt2", "gpt_neo"])
@torch.no_grad()
def test_cached_equals_uncached_token_for_token(body, head, sampling):
    model, prompt = small_model(body, head), torch.tensor([[256, *b"Once"], [256, *b"Then"]])
    found = []
    for use_cache in (True, False):
        context, generator = Context(model, prompt, use_cache), torch.Generator().manual_seed(0)
        for _ in range(30):  # 5 + 30 tokens leave the block of 24
            context.append(next_tokens(model.head, context.states(), sampling, context.ids, generator))
        found.append(context.ids)
    assert torch.equal(*found)


@pytest.mark.parametrize("body", ["gpt2", "gpt_neo"])
def test_a_cache_takes_pieces_of_any_length(body):
    model, ids = small_model(body).double(), torch.randint(0, 256, (2, 24))
    cache = KVCache(3, 24)
    pieces = [model.hidden(piece, cache) for piece in ids.split([7, 1, 10, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(ids), atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match="block_size"):
        model.hidden(ids[:, :1], cache)


def test_one_text_ends_while_others_go_on(monkeypatch):
    model = small_model()
    together = write(model, num_samples=4, max_new_tokens=12, sampling=Sampling(temperature=1.5))
    ending = together[1].tokens[4]
    monkeypatch.setattr(TOKENIZER, "eot_id", ending)
    texts = write(model, num_samples=4, max_new_tokens=12, sampling=Sampling(temperature=0.0))
    assert all(text.tokens.index(ending) == len(text.tokens) - 1 for text in texts if ending in text.tokens)
    assert {text.finish for text in texts} <= {"end_of_text", "length"}


def test_end_of_text_and_stop_texts_are_not_shown(monkeypatch):
    model = small_model()
    ids = [97, 98, 256, 99]
    calls = iter(ids * 10)
    monkeypatch.setattr("grouped_lm.generate.next_tokens", lambda *_: torch.tensor([next(calls)]))
    (text,) = write(model)
    assert (text.text, text.tokens, text.finish) == ("ab", [97, 98, 256], "end_of_text")
    calls = iter(b"one two three")
    shown = []
    (text,) = write(model, stops=["o t", "zzz"], show=shown.append)
    assert (text.text, text.finish) == ("one tw", "stop")
    assert "".join(shown) == "one tw"


def test_a_long_prompt_is_answered_with_one_note():
    notes = []
    (text,) = write(small_model(), prompt="x" * 100, max_new_tokens=5, note=notes.append)
    assert len(text.tokens) == 5
    assert len(notes) == 1
    assert "block_size=24" in notes[0]


def test_an_empty_prompt_starts_at_end_of_text():
    model = small_model()
    (text,) = write(model, prompt="", max_new_tokens=1, sampling=Sampling(temperature=0))
    assert text.tokens == model.head.argmax(model.hidden(torch.tensor([[256]]))[:, -1]).tolist()


def test_penalty_lowers_what_was_there():
    head, states = small_model().head, torch.randn(1, 16)
    best = head.argmax(states)
    context = torch.tensor([[int(best), int(best)]])
    penalised = Sampling(temperature=0, repetition_penalty=1e5)
    assert next_tokens(head, states, penalised, context) == head.topk(states, 2).ids[:, 1]
    assert next_tokens(head, states, Sampling(temperature=0), context) == best


def test_log_probs_are_those_of_the_model():
    model = small_model()
    (text,) = write(model, max_new_tokens=6)
    context = Context(model, torch.tensor([[256, *b"Once upon"]]))
    for token, log_prob in zip(text.tokens, text.log_probs, strict=True):
        assert model.head.log_prob(context.states())[0, token].item() == pytest.approx(log_prob, abs=1e-5)
        context.append(torch.tensor([token]))


def test_characters_appear_whole():
    stream = TextStream(TOKENIZER, [])
    pieces = [stream.feed(byte) for byte in "aé🙂".encode()]
    assert pieces == ["a", "", "é", "", "", "", "🙂"]
    assert stream.feed(0xF0) == ""
    assert stream.close() == "�"
    assert stream.text == "aé🙂�"


@pytest.mark.parametrize(("text", "shown"), [("a<<b>", "a<<b>"), ("a<en", "a<en"), ("a<<end>b", "a<"), ("<end>", "")])
def test_a_stop_text_is_held_back_until_it_is_certain(text, shown):
    stream = TextStream(TOKENIZER, ["<end>"])
    pieces = []
    for byte in text.encode():
        pieces.append(stream.feed(byte))
        assert "<end>".startswith("".join(pieces)[len(shown) :])
    assert "".join(pieces) + stream.close() == shown


@pytest.mark.parametrize("values", [{"temperature": -1.0}, {"temperature": float("nan")}, {"repetition_penalty": 0.5}])
def test_bad_sampling(values):
    with pytest.raises(ConfigError, match="must be in"):
        Sampling(**values)
