"""Cases of users with exported and imported models: each test is named after the id of its case."""

import json
import os
import re
import resource

import pytest
import torch
from exported import keep_modules_in, load, make_run
from safetensors.torch import load_file, save_file

from grouped_lm.config import TokenizerConfig
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.errors import DataError, DiskError
from grouped_lm.generate import Sampling, write_texts
from grouped_lm.heads import (
    AdaptiveConfig,
    DenseConfig,
    FilmConfig,
    GroupedConfig,
    LowRankConfig,
    SampledConfig,
    ShortlistConfig,
    TrimConfig,
)
from grouped_lm.hf.export import export_run, import_checkpoint
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.load import load_config, load_model, own_tokenizer

transformers = pytest.importorskip("transformers")
TEXT = "Once upon a time, it's 10 o'clock.\n\nFür Anna 🙂"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    keep_modules_in(tmp_path / "modules", monkeypatch)


def exported(tmp_path, head, body="gpt2", **options):
    return export_run(make_run(tmp_path / "run", head, body, **options), tmp_path / "hf")


@pytest.mark.parametrize("head", [GroupedConfig(), ShortlistConfig(shortlist_size=30), TrimConfig()], ids=str)
def test_case_E1_trainer_weighs_accumulated_steps_by_their_tokens(tmp_path, head):
    folder = exported(tmp_path, head, scale=1.5)
    ids = torch.randint(0, 257, (8, 10), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": own, "labels": [-100] * n + own[n:]} for n, own in enumerate(ids)]
    found = []
    for micro_batch in (8, 1):
        transformers.set_seed(0)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=8 // micro_batch,
            max_steps=3,
            logging_steps=1,
            learning_rate=1e-2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        )
        trainer = transformers.Trainer(load(folder)[0], arguments, train_dataset=rows)
        trainer.train()
        steps = [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]
        found.append(torch.tensor(steps, dtype=torch.float64))
    assert len(found[0]) == 3
    assert found[0][-1, 0] < found[0][0, 0]
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("body", ["gpt2", "gpt_neo"])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_case_E2_a_left_padded_batch_equals_each_prompt_alone(tmp_path, body, use_cache):
    model, tokenizer = load(exported(tmp_path, FilmConfig(), body, scale=1.5))
    texts = ["On", "Once upon a time"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    asked = {"max_new_tokens": 8, "min_new_tokens": 8, "use_cache": use_cache}
    asked |= {"return_dict_in_generate": True, "output_logits": True}
    for settings in ({"do_sample": False}, {"do_sample": False, "num_beams": 4}):
        together = model.generate(**batch, **asked, **settings)
        for row, text in enumerate(texts):
            alone = model.generate(**tokenizer([text], return_tensors="pt"), **asked, **settings)
            assert together.sequences[row, -8:].tolist() == alone.sequences[0, -8:].tolist()
            if "num_beams" not in settings:
                ours, theirs = (torch.stack(found.logits)[:, r] for found, r in ((together, row), (alone, 0)))
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def gpt2_folder(folder, vocab_size=257, tied=True, **values):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(vocab_size=vocab_size, tie_word_embeddings=tied, **(sizes | values))
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def trained_tokenizer(n_token, ends=("<|endoftext|>",), first=False):
    """Return a byte-level BPE of so many ids, with its special tokens first or last, as users train them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_token - (0 if first else len(ends)),
        special_tokens=list(ends) if first else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = " ".join(f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz")
    model.train_from_iterator([f"once upon a time {words}"], trainer)
    if not first:
        model.add_special_tokens(list(ends))
    assert model.get_vocab_size() == n_token
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token=ends[0], bos_token=ends[0])


@torch.no_grad()
def test_case_E3_a_tokenizer_of_its_own_is_kept(tmp_path, caplog):
    folder, theirs = gpt2_folder(tmp_path / "hf", 400, eos_token_id=399), trained_tokenizer(400)
    theirs.save_pretrained(folder)
    run = import_checkpoint(folder, tmp_path / "run")
    config = load_config(run)
    ours = build_tokenizer(own_tokenizer(run, config.tokenizer))
    assert (ours.name, ours.vocab_size, ours.eot_id) == ("bpe", 400, 399)
    assert ours.encode(TEXT) == theirs(TEXT).input_ids != []
    assert not caplog.records
    model, _ = load_model(run, config, torch.device("cpu"))
    ids = torch.randint(0, 400, (1, 9))
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits.log_softmax(-1)
    torch.testing.assert_close(model.head.log_prob(model.hidden(ids)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("n_token", "ends", "first", "reason"),
    [
        (400, ("<|endoftext|>",), True, "<|endoftext|> has id 0, not the last one, 399"),
        (400, ("<s>", "</s>", "<pad>"), False, "it has 3 special tokens: <s>, </s>, <pad>"),
    ],
)
def test_case_E3_a_tokenizer_that_cannot_be_kept_is_refused(tmp_path, n_token, ends, first, reason):
    folder = gpt2_folder(tmp_path / "hf", n_token)
    trained_tokenizer(n_token, ends, first).save_pretrained(folder)
    with pytest.raises(DataError, match=re.escape(reason)):
        import_checkpoint(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_case_E3_gpt2s_size_is_not_gpt2s_tokenizer(tmp_path):
    folder = gpt2_folder(tmp_path / "hf", 50257)
    values = json.loads(trained_tokenizer(400).backend_tokenizer.to_str())
    values["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="add_prefix_space"):
        import_checkpoint(folder, tmp_path / "run")
    trained_tokenizer(400).save_pretrained(folder)
    run = import_checkpoint(folder, tmp_path / "run")  # rows without a token are cut, and that is said
    assert load_config(run).tokenizer == TokenizerConfig(name="bpe", vocab_size=400)
    (note,) = RunFolder(run).read_result()["import_notes"]
    assert "50257 rows and tokenizer bpe 400 ids" in note


@pytest.mark.parametrize("size", [257, 50257])
def test_case_E3_no_tokenizer_files_and_no_guess(tmp_path, gvc, size):
    folder = gpt2_folder(tmp_path / "hf", size)
    outcome = gvc("import", str(folder), "--out", str(tmp_path / "run"))
    assert outcome.code == 3
    assert f"has no tokenizer files, and a vocabulary of {size} ids does not say which it is" in outcome.err
    assert "give --tokenizer gpt2 (50257 ids), --tokenizer bytes (257 ids)" in outcome.err
    name = {257: "bytes", 50257: "gpt2"}[size]
    assert gvc("import", str(folder), "--out", str(tmp_path / "run"), "--tokenizer", name).code == 0
    assert load_config(tmp_path / "run").tokenizer.name == name


def test_case_E3_a_tie_is_compared(tmp_path):
    folder = gpt2_folder(tmp_path / "hf", tied=False)
    state = load_file(folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    assert not torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    run = import_checkpoint(folder, tmp_path / "untied", "bytes")
    assert load_config(run).head.tied is False
    (folder / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
    with pytest.raises(DataError, match=r"says that lm_head.weight is wte.weight .* the two differ"):
        import_checkpoint(folder, tmp_path / "run", "bytes")
    equal = state | {"lm_head.weight": state["transformer.wte.weight"].clone()}
    save_file(equal, folder / "model.safetensors")
    assert load_config(import_checkpoint(folder, tmp_path / "tied", "bytes")).head.tied is True
    (folder / "config.json").write_text(json.dumps(values))  # says false, but the weights decide
    assert load_config(import_checkpoint(folder, tmp_path / "equal", "bytes")).head.tied is True
    del equal["lm_head.weight"]
    save_file(equal, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"tie_word_embeddings false, and there is no lm_head.weight"):
        import_checkpoint(folder, tmp_path / "run", "bytes")


def test_an_import_that_cannot_be_written_leaves_nothing(tmp_path):
    folder = gpt2_folder(tmp_path / "source")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))  # smaller than the weights
    try:
        with pytest.raises(DiskError):
            import_checkpoint(folder, tmp_path / "made" / "run", "bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any((tmp_path / "made").iterdir())
    assert import_checkpoint(folder, tmp_path / "made" / "run", "bytes") == tmp_path / "made" / "run"


def test_an_imported_model_is_trained_further(tmp_path, gvc, tiny):
    source = import_checkpoint(gpt2_folder(tmp_path / "source"), tmp_path / "run", "bytes")
    words = [word for word in tiny if not word.startswith(("model=", "tokenizer="))]
    run = gvc("train", f"init_from={source}", *words, "train.max_steps=2").run_dir
    before, after = (load_model(path, load_config(path), torch.device("cpu"))[0] for path in (source, run))
    assert load_config(run).head == DenseConfig(tied=True)
    moved = (after.body.wte.weight - before.body.wte.weight).abs().max()
    assert 0 < moved < 0.1  # it starts at the imported weights


def test_the_card_of_an_imported_model_claims_no_training(tmp_path):
    run = import_checkpoint(gpt2_folder(tmp_path / "source"), tmp_path / "run", "bytes")
    card = (export_run(run, tmp_path / "out") / "README.md").read_text()
    assert "Weights: imported from a checkpoint of transformers" in card
    assert "steps on" not in card


@torch.no_grad()
def test_case_E4_padded_rows_are_cut_and_that_is_said(tmp_path, gvc):
    folder = gpt2_folder(tmp_path / "padded", 50304)
    transformers.AutoTokenizer.from_pretrained(exported(tmp_path, GroupedConfig(), tokenizer="gpt2")).save_pretrained(
        tmp_path / "tokenizer"
    )
    outcome = gvc("import", str(folder), "--out", str(tmp_path / "got"), "--tokenizer", str(tmp_path / "tokenizer"))
    assert outcome.code == 0
    assert load_config(tmp_path / "got").tokenizer.name == "gpt2"
    assert "50304 rows and tokenizer gpt2 50257 ids: the last 47 rows were left out" in (
        outcome.err + str(RunFolder(tmp_path / "got").read_result())
    )
    model, _ = load_model(tmp_path / "got", load_config(tmp_path / "got"), torch.device("cpu"))
    ids = torch.randint(0, 257, (1, 9))
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    expected = whole[..., :50257].log_softmax(-1)
    torch.testing.assert_close(model.head.log_prob(model.hidden(ids)), expected, atol=1e-5, rtol=0)


def test_case_E4_a_grown_vocabulary_names_what_is_new(tmp_path):
    folder = gpt2_folder(tmp_path / "grown", 50258)
    theirs = transformers.AutoTokenizer.from_pretrained(exported(tmp_path, GroupedConfig(), tokenizer="gpt2"))
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.save_pretrained(folder)
    with pytest.raises(DataError, match=re.escape("GPT-2's with 50258 ids instead of 50257; new: ['[PAD]']")):
        import_checkpoint(folder, tmp_path / "got")
    run = import_checkpoint(folder, tmp_path / "got", "gpt2")
    notes = RunFolder(run).read_result()["import_notes"]
    assert any("the last 1 rows were left out" in note for note in notes)
    assert any("tokenizer gpt2 was taken as asked" in note for note in notes)


def test_case_E4_too_small_or_another_number_of_rows(tmp_path):
    folder = gpt2_folder(tmp_path / "hf", 300)
    with pytest.raises(DataError, match="vocabulary of 300 ids, tokenizer gpt2 has 50257"):
        import_checkpoint(folder, tmp_path / "run", "gpt2")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"vocab_size": 310}))
    with pytest.raises(DataError, match=r"says vocab_size 310, wte.weight has 300 rows"):
        import_checkpoint(folder, tmp_path / "run", "bytes")
    (folder / "config.json").write_text(json.dumps(values | {"n_embd": 16}))
    with pytest.raises(DataError, match=r"has the shape \(300, 8\) instead of \(257, 16\)|shape .* instead of"):
        import_checkpoint(folder, tmp_path / "run", "bytes")


@torch.no_grad()
def test_case_E4_an_export_of_our_own_bpe_comes_back(tmp_path):
    run = make_bpe_run(tmp_path / "run", DenseConfig())
    folder = export_run(run, tmp_path / "hf")
    again = import_checkpoint(folder, tmp_path / "again")
    config = load_config(again)
    assert config.tokenizer == TokenizerConfig(name="bpe", vocab_size=300)
    found, before = (build_tokenizer(own_tokenizer(path, config.tokenizer)) for path in (again, run))
    assert found.encode(TEXT) == before.encode(TEXT) == load(folder)[1](TEXT).input_ids
    assert load(folder)[1].eos_token_id == found.eot_id == 299
    models = [load_model(path, config, torch.device("cpu"))[0] for path in (again, run)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))


def make_bpe_run(folder, head):
    from grouped_lm.data.tokenizers.bpe import train_bpe

    file = folder.with_name("bpe.json")
    words = " ".join(f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst")
    train_bpe(iter([f"once upon a time {words}"]), 300).save(file)
    config = TokenizerConfig(name="bpe", vocab_size=300, file=str(file))
    run = make_run(folder, head, tokenizer=config)
    build_tokenizer(config).save(RunFolder(run).tokenizer)
    return run


@torch.no_grad()
def test_case_E5_hidden_states_attentions_and_tuples_as_the_dense_export(tmp_path):
    ids, found = torch.arange(7)[None], []
    for index, head in enumerate((DenseConfig(), GroupedConfig())):
        (tmp_path / str(index)).mkdir()
        folder = exported(tmp_path / str(index), head)
        model, _ = load(folder, attn_implementation="eager")
        output = model(ids, output_hidden_states=True, output_attentions=True, labels=ids)
        plain = model(ids, output_hidden_states=True, output_attentions=True, labels=ids, return_dict=False)
        assert type(plain) is tuple
        found.append(
            (len(output.hidden_states), len(output.attentions), output.attentions[0].shape, *map(type, plain[:4]))
        )
    assert found[0] == found[1] == (4, 3, (1, 2, 7, 7), torch.Tensor, torch.Tensor, type(output.past_key_values), tuple)
    with pytest.raises(ValueError, match="attn_implementation='eager'"):
        load(folder)[0](ids, output_attentions=True)


@torch.no_grad()
def test_case_E6_adaptive_in_bf16_sums_to_one(tmp_path):
    model, _ = load(exported(tmp_path, AdaptiveConfig(cutoffs=[20, 100], div_value=2.0)), dtype=torch.bfloat16)
    logits = model(torch.randint(0, 257, (4, 32))).logits
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(4, 32), atol=1e-4, rtol=0)


def test_case_E7_pickles_shards_and_names_of_the_hub(tmp_path, gvc, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = gvc("import", "gpt2", "--out", "run")
    assert outcome.code == 3
    assert "there is no folder gpt2" in outcome.err
    assert "hf download gpt2" in outcome.err
    folder = gpt2_folder(tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"has no model.safetensors; it has config.json"):
        import_checkpoint(folder, tmp_path / "run", "bytes")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"but pytorch_model.bin, a pickle, .*save_pretrained\(NEW\)"):
        import_checkpoint(folder, tmp_path / "run", "bytes")
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for shard, own in shards.items():
        save_file({name: state[name] for name in own}, folder / shard)
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    run = import_checkpoint(folder, tmp_path / "run", "bytes")
    model, _ = load_model(run, load_config(run), torch.device("cpu"))
    assert torch.equal(model.body.wte.weight, state["transformer.wte.weight"])
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"model-00002-of-00002.safetensors is not readable"):
        import_checkpoint(folder, tmp_path / "other", "bytes")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(DataError, match="names no files of its folder"):
        import_checkpoint(folder, tmp_path / "other", "bytes")


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (DenseConfig(bias=True, start="counts"), {}),
        (DenseConfig(bias=True, tied=False), {"body": "gpt_neo"}),
        (DenseConfig(tied=False), {"embedding": "factorised"}),
        (DenseConfig(bias=True, tied=False), {"embedding": "factorised"}),
        (GroupedConfig(), {"embedding": "factorised"}),
        (TrimConfig(), {}),
        (TrimConfig(bias=True, start="counts"), {"body": "gpt_neo"}),
        (TrimConfig(tied=False), {}),
        (TrimConfig(tied=False, bias=True), {"all_seen": True}),
        (LowRankConfig(rank=4), {}),
        (LowRankConfig(rank=4, bias=True), {"body": "gpt_neo"}),
        (SampledConfig(samples=9), {}),
        (SampledConfig(samples=9, bias=True, tied=False), {}),
    ],
    ids=str,
)
@torch.no_grad()
def test_case_E8_every_head_is_exported(tmp_path, head, options):
    run = make_run(tmp_path / "run", head, **options)
    model, _ = load(export_run(run, tmp_path / "hf"))
    ours, _ = load_model(run, load_config(run), torch.device("cpu"))
    ids = torch.randint(0, 257, (2, 32))
    expected = ours.head.log_prob(ours.hidden(ids))
    torch.testing.assert_close(model(ids).logits.log_softmax(-1), expected, atol=1e-4, rtol=0)
    plain = head.name in ("dense", "sampled") and not head.bias
    assert type(model).__name__ == ("GPT2LMHeadModel" if plain else "GvcForCausalLM")


@torch.no_grad()
def test_case_E9_resizing_is_refused_in_one_line(tmp_path):
    model, tokenizer = load(exported(tmp_path, GroupedConfig()))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match="the grouped head is built for 257 tokens and cannot be resized to 258") as e:
        model.resize_token_embeddings(len(tokenizer))
    assert "\n" not in str(e.value)
    assert model.get_input_embeddings().num_embeddings == model(torch.arange(3)[None]).logits.shape[-1] == 257


@pytest.mark.parametrize("head", [DenseConfig(), GroupedConfig()], ids=str)
def test_case_E10_the_card_runs_as_printed_and_knows_end_of_text(tmp_path, head, monkeypatch):
    run = make_run(tmp_path / "run", head, block_size=64)
    folder = export_run(run, tmp_path / "my-model")
    card = (folder / "README.md").read_text()
    load_block, write_block = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(load_block.splitlines()) == 3
    assert ("trust_remote_code" in load_block) == (head.name != "dense")
    assert "Put end-of-text in front of a prompt" in card
    assert not re.search("[{}]", card)
    greedy = write_block.replace("do_sample=True", "do_sample=False")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(f"{load_block}\n{greedy}", names)
    config = load_config(run)
    model, _ = load_model(run, config, torch.device("cpu"))
    bytes_tokenizer = build_tokenizer(config.tokenizer)
    (ours,) = write_texts(
        model, bytes_tokenizer, "Once upon a time", max_new_tokens=15, sampling=Sampling(temperature=0)
    )
    ids = names["output"][0].tolist()
    assert ids[0] == bytes_tokenizer.eot_id
    assert ids[17 : 17 + len(ours.tokens)] == ours.tokens[: len(ids) - 17]


def test_case_E10_files_can_be_read_by_others(tmp_path, gvc):
    run = make_run(tmp_path / "run", GroupedConfig())
    before = os.umask(0o077)
    try:
        folder = tmp_path / "run" / "hf"
        assert gvc("export", str(run)).code == 0
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == dict.fromkeys(
        ("README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_gvc.py",
         "tokenizer.json", "tokenizer_config.json"), "0o644"
    )  # fmt: skip
    assert folder.stat().st_mode & 0o777 == 0o755
