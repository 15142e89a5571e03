"""The small trainings of the fault suite, without dropout, which several processes draw differently."""

from collections.abc import Callable

import pytest
import torch
from fault_tools import small_config

from grouped_lm.data import prepare_data


@pytest.fixture
def config(texts, cache_dir) -> Callable:
    """`small_config` on the session's text and cache, prepared before anything is forked."""

    def make(head: str = "grouped", **train):
        values = {"max_steps": 20, "eval_every_steps": None, "eval_batch_size": 16, "dropout": 0.0}
        made = small_config(dict(texts), cache_dir, head, **(values | train))
        prepare_data(made.data, made.tokenizer)
        return made

    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    return make
