"""Runs that transformers loads offline, with the same logits and tokens, and its checkpoints as runs."""

import json

import pytest
import torch
from exported import keep_modules_in, load, make_run
from head_cases import plain_shortlist
from safetensors.torch import save

from grouped_lm.config import TokenizerConfig
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.errors import DataError
from grouped_lm.generate import Sampling, write_texts
from grouped_lm.heads import (
    AdaptiveConfig,
    ClassFullConfig,
    DenseConfig,
    FilmConfig,
    GroupedConfig,
)
from grouped_lm.hf.export import export_run, import_checkpoint
from grouped_lm.runs.load import load_config, load_model

transformers = pytest.importorskip("transformers")
HEADS = [
    DenseConfig(),
    DenseConfig(tied=False),
    GroupedConfig(),
    FilmConfig(group_size=20),
    ClassFullConfig(),
    ClassFullConfig(tied=False, group_size=20),
    plain_shortlist(shortlist_size=30, directions=3),
    plain_shortlist(tied=False),
    plain_shortlist(shortlist_size=30, own_shortlist=True, start="counts"),
    plain_shortlist(shortlist_size=30, group_size=3, directions=0, shared_rows=60, reserve=True),
    AdaptiveConfig(cutoffs=[20, 100], div_value=2.0),
]
PROMPT = "Once upon"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    keep_modules_in(tmp_path / "modules", monkeypatch)


CASES = [(head, "gpt2", 3) for head in HEADS] + [(DenseConfig(), "gpt_neo", 3), (GroupedConfig(), "gpt_neo", 2)]


@pytest.mark.parametrize(("head", "body", "n_layer"), CASES, ids=str)
@torch.no_grad()
def test_the_same_logits_and_tokens(tmp_path, head, body, n_layer):
    run = make_run(tmp_path / "run", head, body, n_layer=n_layer)
    theirs, tokenizer = load(export_run(run, tmp_path / "hf"))
    config = load_config(run)
    ours, _ = load_model(run, config, torch.device("cpu"))
    ids = torch.randint(0, 257, (2, 32))
    logits = theirs(ids).logits.log_softmax(-1)
    torch.testing.assert_close(logits, ours.head.log_prob(ours.hidden(ids)), atol=1e-4, rtol=0)
    loss = theirs(ids, labels=ids).loss
    torch.testing.assert_close(loss, ours(ids[:, :-1], ids[:, 1:]).nll, atol=1e-4, rtol=1e-5)
    assert (type(theirs).__name__ == "GvcForCausalLM") == (head.name != "dense")

    (text,) = write_texts(
        ours, build_tokenizer(config.tokenizer), PROMPT, max_new_tokens=18, sampling=Sampling(temperature=0)
    )
    prompt = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PROMPT).input_ids]])
    for use_cache in (True, False):
        found = theirs.generate(prompt, max_new_tokens=18, do_sample=False, use_cache=use_cache)
        assert found[0, prompt.shape[1] :].tolist() == text.tokens


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_the_tokenizer_gives_the_same_ids(tmp_path, name):
    run = make_run(tmp_path / "run", GroupedConfig(), tokenizer=name, n_layer=1)
    _, theirs = load(export_run(run, tmp_path / "hf"))
    ours = build_tokenizer(TokenizerConfig(name=name))
    for text in ("Once upon a time, it's 10 o'clock.\n\nFür Anna 🙂", "  a  b", ""):
        assert theirs(text).input_ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == ours.eot_id


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
@torch.no_grad()
def test_a_checkpoint_of_transformers_becomes_a_run(tmp_path, kind, tied):
    torch.manual_seed(0)
    sizes = {
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        "gpt_neo": {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "max_position_embeddings": 32,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 5,
        },
    }[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=257, tie_word_embeddings=tied, **sizes)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    run = import_checkpoint(tmp_path / "hf", tmp_path / "run", "bytes")
    ours, _ = load_model(run, load_config(run), torch.device("cpu"))
    ids = torch.randint(0, 257, (2, 32))
    expected = theirs(ids).logits.log_softmax(-1)
    torch.testing.assert_close(ours.head.log_prob(ours.hidden(ids)), expected, atol=1e-5, rtol=0)
    again, _ = load(export_run(run, tmp_path / "again"))
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits)


def test_a_config_that_is_no_object(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "model.safetensors").write_bytes(save({"x": torch.zeros(1)}))
    with pytest.raises(DataError, match="must hold an object, got list"):
        import_checkpoint(tmp_path, tmp_path / "run")


def test_what_cannot_be_imported(tmp_path):
    with pytest.raises(DataError, match="no readable"):
        import_checkpoint(tmp_path, tmp_path / "run")
    config = transformers.AutoConfig.for_model("gpt2", vocab_size=257, n_embd=16, n_layer=1, n_head=2, n_inner=8)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "odd")
    with pytest.raises(DataError, match=r"n_inner=8 \(gvc has None or 64\)"):
        import_checkpoint(tmp_path / "odd", tmp_path / "run")
    values = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(values | {"model_type": "llama"}))
    with pytest.raises(DataError, match="only gpt2 and gpt_neo"):
        import_checkpoint(tmp_path / "odd", tmp_path / "run")
    neo = {"model_type": "gpt_neo", "hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 8}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(neo | {"attention_types": 3}))
    with pytest.raises(DataError, match=r"attention_types of config.json must be pairs"):
        import_checkpoint(tmp_path / "odd", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_commands(gvc, tmp_path):
    run = make_run(tmp_path / "run", GroupedConfig(), n_layer=1)
    outcome = gvc("export", str(run), "--to", "hf")
    assert outcome.out.strip() == str(run / "hf")
    assert (run / "hf" / "modeling_gvc.py").exists()
    assert gvc("export", str(run)).code == 3  # there already
    assert gvc("export", str(run), "--to", "onnx").code == 2
    assert gvc("export", "nowhere").code == 3
    dense = make_run(tmp_path / "dense", DenseConfig(), n_layer=1)
    exported = gvc("export", str(dense)).out.strip()
    assert gvc("import", exported, "--out", "imported").code == 0
    words = ["--temperature", "0", "--max-new-tokens", "9", "--prompt", "One"]
    assert gvc("sample", "imported", *words).out == gvc("sample", str(dense), *words).out
    assert "no complete run in imported" in gvc("leaderboard", "imported").err  # it has no validation
