"""The schedule's corners, and what is not decayed."""

import pytest
import torch

from grouped_lm.config import AdamWConfig, Config, ModelConfig, TokenizerConfig
from grouped_lm.heads import ClassFullConfig, DenseConfig, FilmConfig, GroupedConfig, build_head
from grouped_lm.models.lm import build_lm
from grouped_lm.optim import build_optimizer, learning_rate
from grouped_lm.optim.adamw import SparseRowsAdamW, split_by_decay, token_tables


def test_learning_rate_rises_then_falls_to_the_floor():
    config = AdamWConfig(lr=2.0, warmup_steps=10, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[99] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_of_runs_shorter_than_their_warm_up():
    config = AdamWConfig(lr=1.0, warmup_steps=50)
    assert [learning_rate(config, step, 2) for step in range(2)] == pytest.approx([0.02, 0.04])
    assert learning_rate(AdamWConfig(lr=1.0, warmup_steps=0), 0, 1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("config", "decayed"),
    [(GroupedConfig(), {"group.weight", "slot.weight"}), (FilmConfig(), {"group.weight", "slot.weight"})],
)
def test_scales_and_shifts_are_not_decayed(config, decayed):
    head = build_head(config, 8, 50)
    kept = {id(p) for p in split_by_decay(head)[0]}
    assert {name for name, p in head.named_parameters() if id(p) in kept} == decayed


def test_norms_and_biases_are_not_decayed_and_tied_weights_stand_once():
    embedding = torch.nn.Embedding(50, 8)
    model = torch.nn.ModuleDict({"wte": embedding, "norm": torch.nn.LayerNorm(8)})
    model["head"] = build_head(DenseConfig(), 8, 50, wte=embedding.weight)
    optimizer = build_optimizer(AdamWConfig(weight_decay=0.3), model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]


def test_a_table_has_a_decay_of_its_own():
    embedding = torch.nn.Embedding(50, 8)
    model = torch.nn.ModuleDict({"wte": embedding, "norm": torch.nn.LayerNorm(8), "linear": torch.nn.Linear(8, 8)})
    model["head"] = build_head(DenseConfig(), 8, 50, wte=embedding.weight)
    groups = build_optimizer(AdamWConfig(weight_decay=0.3, table_weight_decay=0.0), model).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.0]
    assert groups[0]["params"] == [model["linear"].weight]
    assert groups[1]["params"] == [embedding.weight]


def table_model(sparse: bool, vocab_size: int = 30) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(vocab_size, 8)
    model = torch.nn.ModuleDict({"wte": embedding, "norm": torch.nn.LayerNorm(8)})
    model["head"] = build_head(DenseConfig(), 8, vocab_size, wte=embedding.weight)
    return model, build_optimizer(AdamWConfig(weight_decay=0.3, lr=0.01, sparse_rows=sparse), model)


def test_sparse_rows_equal_adamw_where_all_rows_are_touched():
    (dense, plain), (rows, sparse) = (table_model(kind) for kind in (False, True))
    for step in range(20):
        for model, optimizer in ((dense, plain), (rows, sparse)):
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for (name, ours), theirs in zip(rows.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    for key, value in plain.state[dense["wte"].weight].items():
        torch.testing.assert_close(sparse.state[rows["wte"].weight][key], value)


def test_rows_that_are_not_touched_neither_decay_nor_move():
    model, optimizer = table_model(sparse=True)
    table = model["wte"].weight
    for touched in ([1, 4], [4, 29], []):
        before = table.detach().clone(), {k: v.clone() for k, v in optimizer.state[table].items()}
        table.grad = torch.zeros_like(table)
        table.grad[touched] = torch.randn(len(touched), 8)
        optimizer.step()
        assert table.grad is not None
        moved = (table != before[0]).any(1).nonzero().squeeze(1).tolist()
        assert moved == touched
        for key in ("exp_avg", "exp_avg_sq"):
            old = before[1].get(key, torch.zeros_like(table))
            assert (optimizer.state[table][key] != old).any(1).nonzero().squeeze(1).tolist() == touched
    assert optimizer.state[table]["step"] == 3


def test_a_closure_gives_the_gradients_that_are_applied():
    found = []
    for closed in (False, True):
        model, optimizer = table_model(sparse=True)
        table = model["wte"].weight

        def closure(table=table, optimizer=optimizer):
            optimizer.zero_grad()
            loss = table[:3].square().sum()
            loss.backward()
            return loss

        table.grad = torch.ones_like(table)  # an older one, which a closure replaces
        first = optimizer.step(closure) if closed else closure()
        if not closed:
            optimizer.step()
        found.append((first.detach(), table.detach().clone()))
    torch.testing.assert_close(*found)


def test_tables_are_those_with_a_row_per_token():
    model, optimizer = table_model(sparse=True)
    assert isinstance(optimizer, SparseRowsAdamW)
    assert [p is model["wte"].weight for p in token_tables(model)] == [True]
    assert {tuple(p.shape) for p in token_tables(build_head(ClassFullConfig(tied=False), 8, 50))} == {(50, 8)}
    assert token_tables(build_head(GroupedConfig(), 8, 50)) == []
    trim = build_head("trim", 8, 50, counts=torch.arange(50) % 3, tied=False)
    assert [tuple(p.shape) for p in token_tables(trim)] == [(33, 8)]
    assert token_tables(build_head("adaptive", 8, 5000)) == []
    wte = torch.nn.Parameter(0.02 * torch.randn(50, 8))
    own = build_head("shortlist", 8, 50, wte=wte, shortlist_size=10, own_shortlist=True)
    assert [p is wte for p in token_tables(own)] == [True]


def test_a_matrix_of_the_body_with_as_many_rows_is_no_table():
    model = ModelConfig(n_layer=1, n_head=2, n_embd=64, block_size=257)
    config = Config(model=model, head=DenseConfig(), tokenizer=TokenizerConfig(name="bytes"))
    assert [tuple(table.shape) for table in token_tables(build_lm(config, torch.ones(257)))] == [(257, 64)]  # no wpe
