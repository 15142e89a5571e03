"""How much memory there is, in a container too."""

import pytest
import torch

from grouped_lm.config import Config, ModelConfig, TokenizerConfig, TrainConfig
from grouped_lm.errors import ConfigError, MemoryShortError
from grouped_lm.heads import DenseConfig
from grouped_lm.measure import devices
from grouped_lm.measure.devices import container_memory, machine_memory
from grouped_lm.plan.fake_step import with_train
from grouped_lm.plan.memory_check import FIT_SHARE, available_bytes, fit_micro_batch, peak_bytes

CPU = torch.device("cpu")


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A container of 1,000 bytes that holds 100, beside files that it has read."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    (tmp_path / "memory.stat").write_text("anon 60\nfile 900\nactive_file 10\ninactive_file 890\n")
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    return tmp_path


def test_files_that_were_read_do_not_take_a_containers_memory(cgroup):
    assert available_bytes(CPU) == 900
    (cgroup / "memory.current").write_text("880\n")  # read at another moment than the other file
    assert available_bytes(CPU) == 1000


def test_a_plan_has_the_memory_of_the_container(cgroup):
    assert machine_memory() == 1000
    (cgroup / "memory.max").write_text(f"{2**60}\n")
    assert 2**20 < machine_memory() < 2**60


@pytest.mark.parametrize(("file", "content"), [("memory.max", "max\n"), ("memory.stat", "anon 60\n")])
def test_without_a_limit_the_machine_counts(cgroup, file, content):
    (cgroup / file).write_text(content)
    assert container_memory() is None
    assert available_bytes(CPU) > 2**20
    assert machine_memory() > 2**20


@pytest.mark.parametrize("processes", [1, 2])
def test_the_largest_micro_batch_that_divides_the_batch_and_fits(processes):
    config = Config(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=16),
        head=DenseConfig(),
        tokenizer=TokenizerConfig(name="bytes"),
        train=TrainConfig(micro_batch_size=6, grad_accum_steps=5, auto_micro_batch=True),
    )

    def need(size):
        split = with_train(config, micro_batch_size=size, grad_accum_steps=30 // size)
        return peak_bytes(split, size // processes, processes)

    sizes = [size for size in (30, 6, 2) if size % processes == 0]
    for size in sizes:
        split, peak = fit_micro_batch(config, int(need(size) / FIT_SHARE) + 1, processes)
        assert (split.train.micro_batch_size, split.train.grad_accum_steps) == (size, 30 // size)
        assert peak == need(size)
    assert fit_micro_batch(config, None, processes)[0].train.micro_batch_size == 30
    with pytest.raises(MemoryShortError, match="no batch fits"):
        fit_micro_batch(config, need(sizes[-1]) // 4, processes)
    with pytest.raises(ConfigError, match=r"a batch of 30 windows .* cannot be shared by 4 processes"):
        fit_micro_batch(config, None, 4)
