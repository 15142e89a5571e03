"""Cases of `gvc eval`: its cost does not grow with a search that looks at all V tokens again and again."""

import pytest
import torch
from head_cases import head_of

N, V = 200, 3_001


@pytest.mark.parametrize(("scale", "share"), [(0.0, 1.0), (3.0, 0.3)])
@torch.no_grad()
def test_T5_a_group_is_computed_once_for_all_states_that_need_it(monkeypatch, scale, share):
    """A flat model needs every group for the likeliest token, a peaked one few of them."""
    head = head_of("class_full", V, 61)
    for parameter in head.parameters():
        parameter.data.mul_(scale)
    opened = []
    plain = head.group_log_prob
    monkeypatch.setattr(head, "group_log_prob", lambda h, group: opened.append(len(h)) or plain(h, group))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, head.n_embd, generator=generator, dtype=torch.float64)
    head.ranks(hidden, head.sample(hidden, generator).squeeze(1), 5)
    assert sum(opened) <= share * N * head.n_group
    assert len(opened) <= 3 * head.n_group
