"""What every exported model keeps: it behaves as a model of transformers does, whatever its head and its body."""

import pytest
import torch
from exported import keep_modules_in, load, make_run

from grouped_lm.heads import (
    AdaptiveConfig,
    ClassFullConfig,
    DenseConfig,
    FilmConfig,
    GroupedConfig,
    LowRankConfig,
    SampledConfig,
    ShortlistConfig,
    TrimConfig,
)
from grouped_lm.hf.export import export_run

transformers = pytest.importorskip("transformers")
HEADS = {
    "dense": DenseConfig(),
    "dense-untied": DenseConfig(tied=False),
    "dense-bias": DenseConfig(bias=True, start="counts", reserve=True),
    "dense-bias-untied": DenseConfig(bias=True, tied=False),
    "dense-reserve": DenseConfig(reserve=0.2),
    "sampled": SampledConfig(samples=20),
    "sampled-bias": SampledConfig(samples=20, bias=True),
    "low_rank": LowRankConfig(rank=5, bias=True),
    "trim": TrimConfig(bias=True),
    "trim-untied": TrimConfig(tied=False),
    "grouped": GroupedConfig(),
    "film": FilmConfig(group_size=20, reserve=0.2, start="counts"),
    "class_full": ClassFullConfig(),
    "shortlist": ShortlistConfig(shortlist_size=30, directions=0, shared_rows=200, reserve=True, start="counts"),
    "shortlist-directions": ShortlistConfig(shortlist_size=30, directions=3, own_shortlist=True),
    "shortlist-scaled": ShortlistConfig(shortlist_size=30, shared_rows=200, inner_scale=True),
    "adaptive": AdaptiveConfig(cutoffs=[20, 100], div_value=2.0, bias=True, reserve=0.2),
}
KINDS = [(head, body) for head in HEADS for body in ("gpt2", "gpt_neo")]
PLAIN = ("dense", "dense-untied", "sampled")
TEXTS = ["One", "Once upon a time", "A little cat"]
"""The longest is longer than GPT-Neo's window of 6 tokens."""
FIXED = {"max_new_tokens": 5, "min_new_tokens": 5}


class Exports:
    """Exported folders and their models, each made once."""

    def __init__(self, folder):
        self.folder, self.known = folder, {}

    def path(self, head, body):
        target = self.folder / f"{head}-{body}"
        if not target.exists():
            export_run(make_run(self.folder / f"run-{head}-{body}", HEADS[head], body, n_layer=2, scale=1.5), target)
        return target

    def load(self, head, body):
        if (head, body) not in self.known:
            self.known[head, body] = load(self.path(head, body))
        return self.known[head, body]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        keep_modules_in(folder / "modules", patch)
        yield Exports(folder)


@pytest.fixture(params=KINDS, ids="-".join)
def kind(request):
    return request.param


def log_probs(model, inputs, **options):
    return model(**inputs, **options).logits[:, -1].float().log_softmax(-1)


@torch.no_grad()
def test_a_padded_batch_equals_each_prompt_alone(exports, kind):
    model, tokenizer = exports.load(*kind)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert batch.attention_mask[0, 0] == 0  # padding is on the left
    assert batch.attention_mask[:, -1].all()
    alone = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    first = torch.cat([log_probs(model, one) for one in alone])
    if kind[0] not in PLAIN:  # GPT-2 of transformers counts positions from the padding on
        torch.testing.assert_close(log_probs(model, batch), first, atol=1e-4, rtol=0)
    scores = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    for beams in ({}, {"use_cache": False}, {"num_beams": 3}):
        together = model.generate(**batch, **FIXED, **scores, **beams)
        if not beams.get("num_beams"):
            torch.testing.assert_close(together.logits[0].float().log_softmax(-1), first, atol=1e-4, rtol=0)
        for row, one in zip(together.sequences, alone, strict=True):
            own = model.generate(**one, **FIXED, do_sample=False, **beams)[0]
            assert row[-5:].tolist() == own[-5:].tolist(), beams


@torch.no_grad()
def test_sampling_and_positions_know_no_padding(exports, kind):
    model, tokenizer = exports.load(*kind)
    alone = tokenizer(TEXTS[:1], return_tensors="pt")
    padded = tokenizer(TEXTS[:1], return_tensors="pt", padding="max_length", max_length=9)
    found = []
    for inputs in (alone, padded):
        torch.manual_seed(1)
        found.append(model.generate(**inputs, **FIXED, do_sample=True, top_k=20)[0, -5:].tolist())
    assert found[0] == found[1]
    positions = (padded.attention_mask.cumsum(-1) - 1).clamp_min(0)
    given = log_probs(model, padded, position_ids=positions)
    torch.testing.assert_close(given, log_probs(model, alone), atol=1e-4, rtol=0)
    moved = log_probs(model, alone, position_ids=torch.tensor([[4, 5, 6]]))
    assert (moved - log_probs(model, alone)).abs().max() > 1e-2
    embeds = model.get_input_embeddings()(alone.input_ids)
    torch.testing.assert_close(log_probs(model, {"inputs_embeds": embeds}), log_probs(model, alone))


@torch.no_grad()
def test_assisted_generation_gives_the_greedy_tokens(exports, kind):
    model, tokenizer = exports.load(*kind)
    prompt = tokenizer(TEXTS[1:2], return_tensors="pt")
    greedy = model.generate(**prompt, **FIXED, do_sample=False)
    for assistant in ({"assistant_model": model}, {"prompt_lookup_num_tokens": 3}):
        assert torch.equal(model.generate(**prompt, **FIXED, do_sample=False, **assistant), greedy)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_accumulated_steps_equal_one_batch(exports, kind):
    model, _ = exports.load(*kind)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 257, (8, 12), generator=generator)
    labels = ids.clone()
    for row in range(8):
        labels[row, : 1 + row] = -100  # every step has another number of targets
    labels[7] = -100
    n_target = (labels[:, 1:] != -100).sum()
    whole = model(ids, labels=labels).loss
    whole.backward()
    expected = gradients(model)
    assert expected.keys() == {name for name, _ in model.named_parameters()}
    for number in (n_target, int(n_target)):
        total = torch.zeros(())
        for rows, own in zip(ids.split(2), labels.split(2), strict=True):
            loss = model(rows, labels=own, num_items_in_batch=number).loss
            loss.backward()
            total += loss.detach()
        torch.testing.assert_close(total, whole.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(gradients(model), expected, atol=1e-5, rtol=1e-5)
    logits = model(ids).logits.float().log_softmax(-1)[:, :-1]
    picked = -logits.gather(-1, labels[:, 1:, None].clamp_min(0)).squeeze(-1)[labels[:, 1:] != -100]
    torch.testing.assert_close(whole, picked.mean(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_outputs_are_those_that_are_asked_for(exports, kind):
    model, _ = exports.load(*kind)
    ids = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))
    output = model(ids, output_hidden_states=True, labels=ids)
    assert [state.shape for state in output.hidden_states] == [(2, 9, 16)] * 3
    last = model.transformer(ids).last_hidden_state
    torch.testing.assert_close(output.hidden_states[-1], last)
    plain = model(ids, output_hidden_states=True, labels=ids, return_dict=False, use_cache=False)
    assert type(plain) is tuple
    torch.testing.assert_close(plain, (output.loss, output.logits, output.hidden_states))
    kept = model(ids, logits_to_keep=2).logits
    torch.testing.assert_close(kept, output.logits[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, output.logits[:, [0, 5]])
    eager, _ = load(exports.path(*kind), attn_implementation="eager")
    attentions = eager(ids, output_attentions=True).attentions
    assert [part.shape for part in attentions] == [(2, 2, 9, 9)] * 2
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(2, 2, 9))
    if kind[0] not in PLAIN and kind[1] == "gpt2":
        with pytest.raises(ValueError, match="attn_implementation='eager'"):
            model(ids, output_attentions=True)


@pytest.mark.parametrize("head", ["dense", "trim"])
@pytest.mark.parametrize("body", ["gpt2", "gpt_neo"])
@torch.no_grad()
def test_outputs_can_be_asked_for_in_the_config(exports, head, body):
    path, ids = exports.path(head, body), torch.arange(5)[None]
    model, _ = load(path, output_hidden_states=True, output_attentions=True, attn_implementation="eager")
    output = model(ids)
    assert [len(part) for part in (output.hidden_states, output.attentions)] == [3, 2]
    assert model(ids, output_hidden_states=False).hidden_states is None
    model.config.use_cache = False
    assert model(ids).past_key_values is None
    if head != "dense":  # GPT-2 of transformers 5.23 fails with this one
        model.config.return_dict = False
        assert [type(part) for part in model(ids)] == [torch.Tensor, tuple, tuple]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_probabilities_sum_to_one_in_half_precision(exports, kind, dtype):
    model, tokenizer = load(exports.path(*kind), dtype=dtype)
    assert next(model.parameters()).dtype == dtype
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    logits = model(**batch).logits
    if kind[0] not in PLAIN:
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(logits.shape[:2]), atol=1e-4, rtol=0)
        expected, _ = exports.load(*kind)
        far = (logits.exp() - expected(**batch).logits.exp()).abs().sum(-1).max() / 2
        assert far < 0.25  # total variation: the weights are rounded to 8 bits
    assert model.generate(**batch, **FIXED, do_sample=False).shape[1] == batch.input_ids.shape[1] + 5


def test_probabilities_sum_to_one_and_have_gradients_under_autocast(exports, kind):
    model, _ = exports.load(*kind)
    ids = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, labels=ids)
    if kind[0] not in PLAIN:
        torch.testing.assert_close(output.logits.exp().sum(-1), torch.ones(2, 9), atol=1e-4, rtol=0)
    output.loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    with torch.no_grad():
        assert output.loss.item() == pytest.approx(model(ids, labels=ids).loss.item(), rel=0.02)


@torch.no_grad()
def test_it_is_saved_and_loaded_and_never_resized_in_silence(exports, kind, tmp_path):
    model, _ = exports.load(*kind)
    ids = torch.arange(10)[None]
    model.save_pretrained(tmp_path / "again")
    again, info = load_with_info(tmp_path / "again")
    assert not any(info.values())
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.resize_token_embeddings(257).num_embeddings == 257
    if kind[0] in PLAIN:
        assert again.resize_token_embeddings(260)(torch.tensor([259])).shape == (1, 16)
        assert again(ids).logits.shape[-1] == 260
        return
    for size in ((260,), (None, 64)):
        with pytest.raises(ValueError, match="built for 257 tokens and cannot be resized to"):
            again.resize_token_embeddings(*size)
    assert torch.equal(again(ids).logits, model(ids).logits)


def load_with_info(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=True, output_loading_info=True
    )


TWINS = {
    "dense-bias": DenseConfig(bias=True),
    "trim": TrimConfig(),
    "shortlist": ShortlistConfig(shortlist_size=257),
    "low_rank": LowRankConfig(rank=16),
}
"""Heads with options under which they are the full softmax, so that GPT-2 or GPT-Neo of transformers is a twin."""


def twin_of(model):
    """Return the model of transformers with the same weights; its output layer is not tied, to hold any matrix."""
    twin = transformers.AutoModelForCausalLM.from_config(model.config.body).eval()
    twin.transformer.load_state_dict(model.transformer.state_dict())
    own, table = model.head, model.transformer.wte.weight
    weight = own.weight @ own.down.weight if getattr(own, "down", None) is not None else table
    twin.lm_head.weight = torch.nn.Parameter(weight.detach().clone())
    return twin


@pytest.mark.parametrize("body", ["gpt2", "gpt_neo"])
@pytest.mark.parametrize("name", TWINS)
def test_it_equals_its_twin_of_transformers(exports, name, body, tmp_path):
    run = make_run(tmp_path / "run", TWINS[name], body, n_layer=2, scale=1.5, all_seen=True)
    model, tokenizer = load(export_run(run, tmp_path / "hf"))
    if getattr(model.head, "bias", None) is not None:
        model.head.bias.data.zero_()
    twin = twin_of(model)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp_min(0)
    asked = {"labels": labels, "output_hidden_states": True}
    ours, theirs = model(**batch, **asked), twin(**batch, **asked, position_ids=positions)
    kept = batch.attention_mask.bool()
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.logits[kept], theirs.logits.log_softmax(-1)[kept], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.hidden_states, theirs.hidden_states)
    ours.loss.backward()
    theirs.loss.backward()
    mine, other = gradients(model), gradients(twin)
    other = {name: other[name] for name in other if name.startswith("transformer.") and "wte" not in name}
    torch.testing.assert_close({name: mine[name] for name in other}, other, atol=1e-5, rtol=1e-4)
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}, {"top_k": 5, "do_sample": True}):
        found = []
        for either in (model, twin):
            torch.manual_seed(0)
            found.append(either.generate(**batch, **FIXED | {"do_sample": False, "pad_token_id": 256} | options))
        assert torch.equal(*found), options


@pytest.mark.parametrize("body", ["gpt2", "gpt_neo"])
@torch.no_grad()
def test_other_caches_and_ways_to_generate_are_right_or_refused(exports, body):
    model, tokenizer = exports.load("shortlist", body)
    batch, greedy = tokenizer(TEXTS, return_tensors="pt", padding=True), FIXED | {"do_sample": False}
    static = {"cache_implementation": "static", "disable_compile": True}
    if body == "gpt2":
        assert torch.equal(model.generate(**batch, **greedy, **static), model.generate(**batch, **greedy))
    else:
        with pytest.raises(ValueError, match="wrong numbers with a static cache"):
            model.generate(**batch, **greedy, **static)
    with pytest.raises(ValueError, match="Contrastive Search"):
        model.generate(**batch, **greedy, penalty_alpha=0.6, top_k=4)


def test_no_model_is_made_of_a_config_alone(exports):
    model, _ = exports.load("grouped", "gpt2")
    with pytest.raises(ValueError, match="does not say which token is in which group"):
        transformers.AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)


@torch.no_grad()
def test_more_tokens_than_positions_are_refused(exports):
    model, _ = exports.load("grouped", "gpt2")
    ids = torch.zeros(1, 33, dtype=torch.int64)
    with pytest.raises(ValueError, match="reads at most 32 tokens, got 33"):
        model(ids)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    assert model(ids, attention_mask=mask).logits.shape == (1, 33, 257)  # padding takes no position
    with pytest.raises(ValueError, match="reads at most 32 tokens, got 33"):
        model.generate(ids[:, :30], attention_mask=mask[:, 3:], max_new_tokens=5, min_new_tokens=5)


@pytest.mark.parametrize(("head", "body"), [("shortlist", "gpt2"), ("trim", "gpt_neo")])
def test_a_pipeline_writes_text(exports, head, body):
    folder = str(exports.path(head, body))
    write = transformers.pipeline("text-generation", model=folder, trust_remote_code=True, device="cpu")
    settings = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    alone = [write(text, **settings)[0]["generated_text"] for text in TEXTS]
    together = [found[0]["generated_text"] for found in write(TEXTS, batch_size=3, **settings)]
    assert together == alone
    assert all(alone)


def rows_of(n_row):
    """Return rows of ids with labels of which every row ignores another number."""
    ids = torch.randint(0, 257, (n_row, 10), generator=torch.Generator().manual_seed(0))
    labels = [[-100] * row + own[row:] for row, own in enumerate(ids.tolist())]
    return [{"input_ids": own, "labels": kept} for own, kept in zip(ids.tolist(), labels, strict=True)]


def trained(exports, kind, folder, micro_batch, model=None, **options):
    """Return the log of two steps of Trainer over 8 rows in micro-batches."""
    transformers.set_seed(0)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=8 // micro_batch,
        max_steps=2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        **options,
    )
    model = model or load(exports.path(*kind))[0]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows_of(8))
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", [("shortlist", "gpt2"), ("grouped", "gpt_neo")], ids="-".join)
def test_peft_trains_the_body(exports, kind, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokenizer = load(exports.path(*kind))
    names = ["c_attn"] if kind[1] == "gpt2" else ["q_proj", "v_proj"]
    setting = peft.LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM", fan_in_fan_out=kind[1] == "gpt2")
    adapted = peft.get_peft_model(model, setting)
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    trained(exports, kind, tmp_path / "trainer", 4, adapted, learning_rate=0.1)
    moved = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    adapted.eval().save_pretrained(tmp_path / "adapter")
    fresh, _ = load(exports.path(*kind))
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, adapted(**batch).logits)
        assert torch.equal(
            again.generate(**batch, **FIXED, do_sample=False), adapted.generate(**batch, **FIXED, do_sample=False)
        )


@pytest.mark.parametrize("head", ["low_rank", "film", "class_full", "adaptive"])
def test_peft_may_adapt_the_layers_of_a_head_too(exports, head, tmp_path):
    peft = pytest.importorskip("peft")
    model, _ = load(exports.path(head, "gpt_neo"))
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    own = [p for name, p in adapted.named_parameters() if "lora_B" in name and ".head." in name]
    assert own
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, before)  # LoRA starts at zero
        for parameter in own:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        moved = adapted(ids).logits
        assert (moved - before).abs().max() > 1e-2
        torch.testing.assert_close(moved.exp().sum(-1), torch.ones(1, 9), atol=1e-4, rtol=0)
        torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, moved, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [("shortlist", "gpt2"), ("grouped", "gpt_neo")], ids="-".join)
def test_label_smoothing_and_evaluation_of_trainer(exports, kind, tmp_path):
    trainer = trained(exports, kind, tmp_path, 4, label_smoothing_factor=0.1, per_device_eval_batch_size=4)
    model, rows = trainer.model.eval(), rows_of(8)
    found = trainer.predict(rows)
    assert found.predictions.shape == (8, 10, 257)  # no cache among what is gathered
    logits = torch.from_numpy(found.predictions)[:, :-1]
    targets = torch.tensor([row["labels"] for row in rows])[:, 1:]
    own = [
        torch.nn.functional.cross_entropy(part.flatten(0, 1), wanted.flatten(), label_smoothing=0.1)
        for part, wanted in zip(logits.split(4), targets.split(4), strict=True)
    ]
    assert found.metrics["test_loss"] == pytest.approx(sum(own).item() / 2, abs=1e-4)
    assert not model.training


def test_gradient_checkpointing_gives_the_same_gradients(exports):
    model, _ = load(exports.path("shortlist", "gpt2"))
    ids = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))
    model.train()
    model(ids, labels=ids).loss.backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    torch.testing.assert_close(gradients(model), expected)
