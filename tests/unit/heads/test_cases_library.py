"""What a user of the library does and gets wrong: one default, one sentence for a mistake. Names hold the case's id."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from head_cases import head_of

import grouped_lm
from grouped_lm.errors import ConfigError
from grouped_lm.heads import DEFAULT_HEAD, HEADS, GroupedConfig, ShortlistConfig, ShortlistHead, build_head
from grouped_lm.heads.decoding.truncation import Truncation

V, D = 300, 8
TEXT = np.random.default_rng(0).zipf(1.5, 5_000) % 250


def embedding(std: float = 0.02) -> torch.nn.Embedding:
    wte = torch.nn.Embedding(V, D)
    torch.nn.init.normal_(wte.weight, std=std)
    return wte


def loss_of(head, hidden=None, targets=None):
    hidden = torch.randn(4, D, requires_grad=True) if hidden is None else hidden
    return head(hidden, torch.arange(4) if targets is None else targets)


def test_case_L1_every_way_to_the_default_head_gives_the_same():
    wte, counts = embedding().weight, torch.from_numpy(np.bincount(TEXT, minlength=V))
    ways = [
        build_head(ShortlistConfig(), D, V, counts=counts, wte=wte, tokens=TEXT),
        build_head("shortlist", D, V, counts=counts, wte=wte, tokens=lambda: TEXT),
        build_head(DEFAULT_HEAD, wte=wte, tokens=torch.from_numpy(TEXT)),
        build_head(ShortlistConfig(), D, V, "brown", counts, wte, TEXT),
    ]
    first = ways[0].state_dict()
    assert first["reserved"].numel()
    for head in ways[1:]:
        assert isinstance(head, ShortlistHead)
        assert list(head.state_dict()) == list(first)
        assert all(torch.equal(tensor, first[name]) for name, tensor in head.state_dict().items())


def test_case_L1_the_grouping_follows_what_is_known():
    def groups(**known):
        return build_head("shortlist", shortlist_size=9, wte=embedding().weight, **known).token_to_group

    counts = torch.from_numpy(np.bincount(TEXT, minlength=V))
    assert torch.equal(groups(), groups(grouping="merge_rank"))
    assert torch.equal(groups(counts=counts), groups(counts=counts, grouping="frequency"))
    assert not torch.equal(groups(counts=counts), groups(counts=counts, tokens=TEXT))


def test_case_L2_a_head_is_built_from_its_name_and_options():
    head = build_head("grouped", D, V, group_size=7)
    assert (head.group_size, head.n_group) == (7, 43)
    assert build_head(GroupedConfig(group_size=9), D, V, group_size=7).group_size == 7
    with pytest.raises(ConfigError, match=r"unknown key head.group_siz for head=grouped; did you mean head.group_size"):
        build_head("grouped", D, V, group_siz=7)
    with pytest.raises(ConfigError, match=r"head must be one of dense, grouped.*got 'gruped'"):
        build_head("gruped", D, V)
    with pytest.raises(ConfigError, match=r"head must be a name \(dense, .*\) or a config of one, got None"):
        build_head(None, D, V)
    with pytest.raises(ConfigError, match=r"needs n_embd and vocab_size, both at least 1, or wte; got None and None"):
        build_head("grouped")


def test_case_L3_a_wide_start_of_a_tied_embedding_is_warned_of():
    with pytest.warns(UserWarning, match=r"N\(0, 1\).*torch.nn.init.normal_\(embedding.weight, std=0.02\)"):
        build_head("shortlist", wte=torch.nn.Embedding(V, D).weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_head("shortlist", wte=embedding().weight)
        build_head("shortlist", wte=embedding(std=0.14 * 8).weight)  # as wide as a trained table may be
        build_head("shortlist", wte=torch.nn.Embedding(V, D).weight, tied=False)


@pytest.mark.parametrize("name", ["grouped", "shortlist", "dense"])
def test_case_L4_a_loss_has_backward(name):
    head = build_head(name, wte=embedding().weight).train()
    head.regularise(0.1, 1e-3)
    gradients = []
    for backward in (lambda loss: loss.backward(), lambda loss: loss.objective().backward()):
        hidden = torch.ones(4, D, requires_grad=True)
        backward(loss_of(head, hidden))
        gradients.append(hidden.grad)
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_case_L4_print_says_the_sizes():
    assert "V=300, D=8, G=18, S=17" in repr(build_head("grouped", D, V))
    assert "V=300, D=8, K=9, G=18, S=17" in repr(build_head("shortlist", wte=embedding().weight, shortlist_size=9))
    assert "DenseHead(V=50,257, D=8)" in repr(build_head("dense", D, 50_257, tied=False))


def test_case_L4_dir_has_the_public_names():
    assert {"build_head", "Head", "HeadLoss", "compress", "load_run"} <= set(dir(grouped_lm))
    assert "Any" not in dir(grouped_lm)
    assert all(getattr(grouped_lm, name) for name in dir(grouped_lm))
    with pytest.raises(AttributeError, match="has no attribute 'compres'"):
        _ = grouped_lm.compres


@pytest.mark.parametrize("name", ["grouped", "shortlist", "dense", "adaptive", "low_rank", "trim", "sampled"])
@pytest.mark.parametrize(
    ("hidden", "targets", "error", "message"),
    [
        (torch.zeros(4, D + 1), torch.arange(4), ValueError, r"hidden must have shape \(\.\.\., 8\).*got \(4, 9\)"),
        (torch.zeros(4, D), torch.arange(5), ValueError, r"\(4, 8\) and targets \(5,\) do not match.*shape \(4,\)"),
        (torch.zeros(4, D), torch.tensor([0, V, 1, 2]), ValueError, r"a target is 300: ids must be in \[0, 300\)"),
        (torch.zeros(4, D), torch.tensor([0, -1, 1, 2]), ValueError, "a target is -1: .* -100 marks"),
        (torch.zeros(4, D), torch.ones(4), TypeError, r"targets must be int64 ids, got torch.float32: .*\.long\(\)"),
        (torch.zeros(4, D), np.arange(4), TypeError, r"got ndarray: wrap it in torch.as_tensor"),
        (torch.zeros(4, D), [1, 2, 3, 4], TypeError, r"got list: wrap it in torch.as_tensor"),
    ],
    ids=["wrong D", "shapes", "target >= V", "negative target", "float", "numpy", "list"],
)
def test_case_L5_wrong_states_and_targets_get_one_sentence(name, hidden, targets, error, message):
    head = build_head(name, wte=embedding().weight)
    with pytest.raises(error, match=message) as caught:
        head(hidden, targets)
    assert "\n" not in str(caught.value)


def test_case_L5_targets_of_other_integers_count_as_ids():
    head = build_head("grouped", D, V)
    hidden = torch.randn(4, D)
    assert loss_of(head, hidden, torch.arange(4, dtype=torch.int32)).nll == loss_of(head, hidden).nll


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_case_L5_targets_of_other_integers_with_a_reserve(dtype, reduction):
    head = build_head("dense", D, V, counts=torch.arange(V) % 3, tied=False, reserve=0.1)
    hidden = torch.randn(4, D)
    found, expected = (head.loss(hidden, torch.arange(4, dtype=own), reduction).nll for own in (dtype, torch.int64))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("reserve", [False, 0.1])
@pytest.mark.parametrize("name", HEADS)
def test_case_L5_the_id_156_of_uint8_counts_though_torch_takes_it_for_minus_100(name, reserve):
    head = head_of(name, V, reserve=reserve)
    hidden = torch.randn(6, head.n_embd).double().requires_grad_()
    ids = torch.tensor([156, 3, 156, 154, 255, 128], dtype=torch.uint8)  # 154 is unseen
    for reduction in ("mean", "sum", "none"):
        found, expected = (head.loss(hidden, targets, reduction) for targets in (ids, ids.long()))
        assert torch.equal(found.nll, expected.nll)
        assert (found.token_nll is None) == (expected.token_nll is None)
        if found.token_nll is not None:
            assert torch.equal(found.token_nll, expected.token_nll)
        gradients = (torch.autograd.grad(loss.nll.sum(), hidden)[0] for loss in (found, expected))
        torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert torch.equal(head.target_log_prob(hidden, ids), head.target_log_prob(hidden, ids.long()))


def test_case_L5_ids_of_uint8_outside_the_vocabulary_are_refused():
    head = build_head("grouped", D, 150)
    with pytest.raises(ValueError, match=r"a target is 156: ids must be in \[0, 150\)"):
        head.loss(torch.zeros(1, D), torch.tensor([156], dtype=torch.uint8))


@pytest.mark.parametrize("name", HEADS)
def test_case_L5_decoding_takes_states_of_single_places(name):
    head = head_of(name)
    batch = torch.zeros(2, 5, head.n_embd).double()
    for call in (
        head.argmax,
        head.sample,
        lambda states: head.topk(states, 3),
        lambda states: head.ranks(states, torch.zeros(2, dtype=torch.int64), 5),
    ):
        with pytest.raises(ValueError, match=r"decoding takes states of shape \(N, 6\), got \(2, 5, 6\)"):
            call(batch)
    for temperature in (-1, float("inf"), float("nan")):
        for truncation in (None, Truncation(top_k=3)):
            with pytest.raises(ValueError, match=f"temperature must be 0 or more, and finite, got {temperature}"):
                head.sample(batch[:, -1], temperature=temperature, truncation=truncation)
    with pytest.raises(ValueError, match="reduction must be mean, sum or none, got 'avg'"):
        head.loss(batch, torch.zeros(2, 5, dtype=torch.int64), "avg")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int64, np.float32])
@pytest.mark.parametrize("name", ["shortlist", "sampled"])
def test_case_L5_counts_of_every_type_give_one_head(name, dtype):
    counts = np.where(np.arange(V) < 9, 200, np.arange(V) % 2 * 128).astype(dtype)
    options = {"proposal": "frequency"} if name == "sampled" else {"shortlist_size": 4}
    states = []
    for own in (counts, torch.from_numpy(counts.astype(np.int64))):
        torch.manual_seed(0)
        states.append(build_head(name, counts=own, wte=embedding().weight, **options).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items() if not key.endswith("weight"))


def test_case_L6_the_default_head_alone_trains_with_any_optimizer():
    table = embedding().weight
    head = build_head("shortlist", wte=table, tokens=lambda: TEXT % (V // 3), shortlist_size=9)
    assert head.table_rows is not None
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    hidden, targets = torch.randn(64, D), torch.arange(64)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = head(hidden, targets).nll
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("reserve", [False, 0.1])
@pytest.mark.parametrize("name", HEADS)
def test_case_L6_a_head_is_pickled(name, reserve):
    head = head_of(name, reserve=reserve)
    again = pickle.loads(pickle.dumps(head))
    hidden = torch.randn(5, head.n_embd).double()
    assert torch.equal(head.log_prob(hidden), again.log_prob(hidden))
    assert type(again) is type(head)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"counts": [1] * V}, r"counts must be a tensor of shape \(300,\), got list: torch.as_tensor\(counts\)"),
        ({"counts": torch.ones(V - 1)}, r"counts must have shape \(300,\).*got \(299,\): torch.bincount"),
        ({"counts": -torch.ones(V)}, r"counts must be 0 or more, got -1.0"),
        ({"tokens": [1, 2, 3]}, "tokens must be an array or tensor of ids, or a function .*, got list: numpy.asarray"),
        ({"tokens": TEXT.astype(float)}, "tokens must be one row of integer ids, got float64"),
        ({"tokens": np.array([0, 1, V])}, r"tokens must be ids in \[0, 300\), got 0 to 300: give the vocab_size"),
        ({"tokens": lambda: np.array([-1, 0])}, r"tokens must be ids in \[0, 300\), got -1 to 0"),
        ({"grouping": "brwn"}, "grouping must be one of merge_rank, .*, got 'brwn'"),
        ({"grouping": "brown"}, "grouping=brown needs the token counts of the training text"),
        ({"n_embd": D + 1}, r"needs wte, .* of shape \(300, 9\), got Parameter of shape \(300, 8\): .*tied=False"),
        ({"wte": None, "n_embd": D, "vocab_size": V}, r"needs wte, .* of shape \(300, 8\), got none"),
        ({"shortlist_size": -1}, r"head.shortlist_size must be in \[0, "),
        ({"shortlist_size": "12"}, "head.shortlist_size must be a whole number or null, got '12'"),
        ({"wte": torch.nn.Embedding(V, D)}, "wte must be a tensor, got Embedding: give wte=embedding.weight"),
    ],
)
def test_case_L5_wrong_things_to_build_from_get_one_sentence(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_head("shortlist", **({"wte": embedding().weight} | given))
    assert "\n" not in str(caught.value)


def test_case_L5_options_beside_a_config_are_checked_like_those_beside_a_name():
    with pytest.raises(ConfigError, match=r"unknown key head\.foo for head=shortlist"):
        build_head(ShortlistConfig(), D, V, foo=1)
    with pytest.raises(ConfigError, match=r"head\.shortlist_size must be a whole number or null, got 12\.5"):
        build_head(ShortlistConfig(shortlist_size=12.5), wte=embedding().weight)


def test_importing_heads_imports_torch_and_numpy_alone():
    code = (
        "import sys, torch, numpy; known = set(sys.modules); import grouped_lm.heads;"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - known} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['grouped_lm']"


def test_importing_the_package_imports_no_torch():
    code = "import sys, grouped_lm; dir(grouped_lm); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
