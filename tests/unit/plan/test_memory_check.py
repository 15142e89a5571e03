"""How much memory there is, in a container too."""

import pytest
import torch

from grouped_lm.measure import devices
from grouped_lm.measure.devices import container_memory, machine_memory
from grouped_lm.plan.memory_check import available_bytes

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
