"""Cases of users with `grouped_lm.compress`: each test is named after the id of its case."""

import copy

import pytest
import torch
from exported import keep_modules_in
from test_compress import kl, small_gpt2

import grouped_lm
from grouped_lm.errors import ConfigError, RunFolderError
from grouped_lm.heads import ClassFullConfig, FilmConfig, GroupedConfig, ShortlistConfig

transformers = pytest.importorskip("transformers")
V = 211


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    keep_modules_in(tmp_path / "modules", monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("gpt2",), r"got 'gpt2': use AutoModelForCausalLM.from_pretrained\('gpt2'\)"),
        ((None,), "a loaded causal language model of transformers, got None"),
        ((torch.nn.Linear(2, 2),), "got Linear"),
        ((3,), "got int"),
    ],
)
def test_case_L6_what_is_no_model_gets_one_line(arguments, line):
    with pytest.raises(ConfigError, match=line) as error:
        grouped_lm.compress(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"input_ids": "text"}, r"input_ids must be a \(B, T\) tensor of token ids, got str"),
        ({"input_ids": torch.zeros(2, 3)}, r"got torch.float32 of shape \(2, 3\)"),
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, r"of shape \(3,\)"),
        ({"input_ids": torch.full((1, 3), V)}, rf"ids in \[0, {V}\)"),
        ({"input_ids": torch.zeros(1, 65, dtype=torch.int64)}, "rows of at most 32 tokens, got 65: cut input_ids"),
        ({"distill_steps": -1}, "distill_steps must be in"),
        ({"lr": 0.0}, "lr must be in"),
        ({"head": "dense"}, "DenseHead cannot be fitted"),
        ({"head": "shortlst"}, "did you mean|must be one of"),
    ],
)
def test_case_L6_wrong_arguments_get_one_line(options, line):
    model = small_gpt2()
    with pytest.raises(ConfigError, match=line):
        grouped_lm.compress(model, **options)
    assert isinstance(model.lm_head, torch.nn.Linear)  # nothing was replaced


def test_case_L6_a_soft_cap_is_refused_and_not_forgotten():
    model, before = small_gpt2(), transformers.GPT2LMHeadModel.forward

    def capped(*args, **kwargs):
        output = before(model, *args, **kwargs)
        output.logits = 3 * (output.logits / 3).tanh()
        return output

    model.forward = capped
    with pytest.raises(ConfigError, match="changes the logits after its linear output layer"):
        grouped_lm.compress(model)


@pytest.mark.parametrize(
    "head", [FilmConfig(group_size=15), ShortlistConfig(shortlist_size=50, group_size=15)], ids=str
)
def test_case_L6_the_report_has_divergence_parameters_and_bytes(head):
    model = small_gpt2(tied=False)
    teacher, ids = copy.deepcopy(model), torch.randint(V, (8, 32), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    report = grouped_lm.compress(model, head, input_ids=ids, distill_steps=40, lr=1e-2).report
    assert torch.equal(torch.rand(1), expected)  # the user's random numbers go on as before
    assert report.kl_before > report.kl_fitted > report.kl_after > 0
    with torch.no_grad():
        held_out = kl(model, teacher(ids[-1:]).logits.log_softmax(-1), ids[-1:])
    assert report.kl_after == pytest.approx(held_out, rel=1e-3)
    count = [sum(p.numel() for p in one.parameters()) for one in (teacher, model)]
    assert [report.parameters_before, report.parameters_after] == count
    size = [sum(t.nbytes for t in (*one.parameters(), *one.buffers())) for one in (teacher, model)]
    assert [report.bytes_before, report.bytes_after] == size
    assert report.logits_before == V > report.logits_after
    assert f"{report.kl_after:.4f} at the end" in str(report)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [None, "film", ShortlistConfig(shortlist_size=50, directions=2)], ids=str)
@torch.no_grad()
def test_case_L6_a_compressed_model_is_saved_and_loaded(tmp_path, head, tied):
    compressed = grouped_lm.compress(small_gpt2(tied), head)
    model, ids = compressed.model, torch.randint(V, (2, 32))
    folder = compressed.save_pretrained(tmp_path / "saved")
    options = {"local_files_only": True, "trust_remote_code": True}
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(again(ids, labels=ids).loss, compressed(ids, ids).nll, atol=1e-5, rtol=0)
    assert (folder / "README.md").read_text().count("KL(model || compressed)") == 1
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    with pytest.raises(RunFolderError, match="exists already"):
        compressed.save_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_case_L6_the_default_head_is_fitted_whatever_its_start_and_precision(dtype):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=1000, **sizes)).eval()
    model.lm_head.weight.data.mul_(8)
    counts = torch.randint(0, 100, (1000,))  # the head starts at their logarithms, which this model does not know
    report = grouped_lm.compress(model.to(dtype), counts=counts, distill_steps=5).report
    assert report.kl_fitted < 0.1 < report.kl_before
    assert report.kl_after < 1.2 * report.kl_fitted


@pytest.mark.parametrize("head", [GroupedConfig(start="counts"), FilmConfig(start="counts")], ids=str)
def test_log_counts_at_the_start_do_not_stay_in_a_head_whose_layer_has_no_biases(head):
    counts = torch.randint(0, 100, (V,), generator=torch.Generator().manual_seed(0))
    report = grouped_lm.compress(small_gpt2(), head, counts=counts).report
    plain = grouped_lm.compress(small_gpt2(), type(head)(), counts=counts).report
    assert report.kl_fitted == pytest.approx(plain.kl_fitted, rel=1e-4)


def test_a_saved_head_with_a_reserve_and_no_unseen_token_has_finite_gradients(tmp_path):
    compressed = grouped_lm.compress(small_gpt2(), ClassFullConfig(reserve=True))
    folder = compressed.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.randint(V, (2, 32))
    again(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in again.parameters())


@torch.no_grad()
def test_states_may_have_another_width_than_the_body(tmp_path):
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=V, hidden_size=16, word_embed_proj_dim=8, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    compressed = grouped_lm.compress(transformers.OPTForCausalLM(config).eval())
    folder, ids = compressed.save_pretrained(tmp_path / "saved"), torch.randint(V, (2, 32))
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    torch.testing.assert_close(again(ids).logits, compressed.model(ids).logits, atol=1e-5, rtol=0)


def test_a_body_that_cannot_be_loaded_again_is_not_saved(tmp_path):
    config = transformers.BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2)
    compressed = grouped_lm.compress(transformers.BloomForCausalLM(config))
    with pytest.raises(ConfigError, match="compressed BloomModel cannot be saved, as it has no max_position_emb"):
        compressed.save_pretrained(tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def test_case_L6_the_old_ways_to_save_and_resize_are_refused(tmp_path):
    model = grouped_lm.compress(small_gpt2()).model
    with pytest.raises(ConfigError, match=r"saved by compressed.save_pretrained\(folder\)"):
        model.save_pretrained(tmp_path / "lost")
    with pytest.raises(ConfigError, match="resize_token_embeddings first, then compress"):
        model.resize_token_embeddings(300)


@torch.no_grad()
def test_case_L6_another_body_than_gpt2(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    compressed = grouped_lm.compress(transformers.LlamaForCausalLM(config).eval(), "class_full")
    folder, ids = compressed.save_pretrained(tmp_path / "saved"), torch.randint(V, (2, 32))
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    torch.testing.assert_close(again(ids).logits, compressed.model(ids).logits, atol=1e-5, rtol=0)
    padded, mask = torch.nn.functional.pad(ids[:1, :9], (4, 0)), torch.tensor([[0] * 4 + [1] * 9])
    alone = again.generate(ids[:1, :9], max_new_tokens=5, min_new_tokens=5, do_sample=False)[0, 9:]
    assert again.generate(padded, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False)[
        0, 13:
    ].equal(alone)
