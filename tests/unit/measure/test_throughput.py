"""Meters, on a fake clock, a fake allocator, and one real step whose bytes can be counted by hand."""

import pytest
import torch

from grouped_lm.heads import DenseConfig, GroupedConfig, build_head
from grouped_lm.measure.memory import (
    GIB,
    PeakTensorMemory,
    StepMemory,
    measure_head_peak_gib,
    peak_of_events,
    peak_rss_gib,
    restart_peak_rss,
    tensor_bytes,
)
from grouped_lm.measure.throughput import Throughput

CPU = torch.device("cpu")


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_throughput_counts_windows_only():
    clock = FakeClock()
    speed = Throughput(clock)
    assert speed.tokens_per_sec() is None
    for seconds in (1.0, 2.0, 10.0):  # a stutter in the third does not move the median
        speed.start(0, CPU)
        clock.now += seconds
        assert speed.stop(4, 50, CPU) == pytest.approx(200 / seconds)
        assert not speed.running
        clock.now += 1000.0  # evaluation, saves
    assert speed.tokens_per_sec() == pytest.approx(100.0)


def test_throughput_without_a_window_or_a_step_says_nothing():
    speed = Throughput(FakeClock())
    assert speed.stop(4, 50, CPU) is None
    speed.start(4, CPU)
    assert speed.stop(4, 50, CPU) is None
    assert speed.tokens_per_sec() is None


def test_throughput_leaves_out_a_window_whose_steps_were_taken_back():
    clock = FakeClock()
    speed = Throughput(clock)
    speed.start(7, CPU)
    clock.now += 1.0
    speed.drop()
    assert not speed.running
    assert speed.stop(4, 50, CPU) is None
    assert speed.tokens_per_sec() is None


class FakeCuda:
    """Counters of `torch.cuda`, as far as the meter reads them."""

    def __init__(self):
        self.live = self.peak = 0

    def allocate(self, size):
        self.live += size
        self.peak = max(self.peak, self.live)

    def free(self, size):
        self.live -= size

    def reset_peak_memory_stats(self):
        self.peak = self.live

    def max_memory_allocated(self):
        return self.peak

    def max_memory_reserved(self):
        return 2 * self.peak


def test_cuda_memory_leaves_warm_up_and_evaluation_out():
    cuda = FakeCuda()
    model = torch.nn.Linear(2, 2)
    memory = StepMemory(torch.device("cuda"), model, torch.optim.SGD(model.parameters()), cuda)
    cuda.allocate(9 * GIB)  # warm-up
    cuda.free(8 * GIB)
    memory.restart()
    cuda.allocate(2 * GIB)  # a step
    cuda.free(2 * GIB)
    assert memory.read() == {"memory/peak_gpu_gib": 3.0, "memory/peak_reserved_gib": 6.0}
    cuda.allocate(20 * GIB)  # an evaluation
    cuda.free(20 * GIB)
    memory.restart()
    cuda.allocate(1 * GIB)
    assert memory.read()["memory/peak_gpu_gib"] == 3.0


def test_step_memory_on_cuda_starts_when_warm_up_ends():
    cuda = FakeCuda()
    model = torch.nn.Linear(2, 2)
    memory = StepMemory(torch.device("cuda"), model, torch.optim.SGD(model.parameters()), cuda)
    for step, size in enumerate((9, 9, 9, 9, 2, 3)):
        with memory.watch(step):
            cuda.allocate(size * GIB)
            cuda.free(size * GIB)
    assert memory.read()["memory/peak_gpu_gib"] == 3.0


def test_peak_of_events_sorts_by_time():
    assert peak_of_events([(3, -5), (1, 5), (2, 7), (4, 1)], baseline=10) == 22
    assert peak_of_events([], baseline=10) == 10


def test_tensor_bytes_counts_shared_storage_once():
    table = torch.zeros(10, 4)
    assert tensor_bytes([table, table[2:], table.t(), torch.zeros(3)]) == 172


def test_peak_tensor_memory_of_a_step_counted_by_hand():
    weight = torch.zeros(1000, 1000)
    with PeakTensorMemory(tensor_bytes([weight])) as peak:
        first = weight + 1  # 4 MB
        second = first + 1  # 8 MB
        del first
        third = second + 1  # 8 MB again
        del second, third
    assert peak.gib() * GIB == pytest.approx(3 * 4_000_000, rel=0.01)


def test_peak_tensor_memory_sees_inside_an_operator():
    logits = torch.zeros(500, 1000, requires_grad=True)
    targets = torch.zeros(500, dtype=torch.int64)
    with PeakTensorMemory(0) as peak:
        torch.nn.functional.cross_entropy(logits, targets).backward()
    assert peak.gib() * GIB >= 2 * 500 * 1000 * 4  # the log-softmax, and the gradient


def test_peak_rss_reads_the_high_water_mark(tmp_path):
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  1048576 kB\n")
    restart_peak_rss(tmp_path)
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert peak_rss_gib(tmp_path) == 1.0
    assert peak_rss_gib(tmp_path / "nowhere") is None


def test_head_peak_counts_logits_and_leaves_no_trace():
    n_tokens, n_embd, vocab_size = 64, 8, 1000
    head = build_head(DenseConfig(tied=False), n_embd, vocab_size)
    state = torch.get_rng_state()
    peak = measure_head_peak_gib(head, n_tokens, n_embd, vocab_size, CPU) * GIB
    assert torch.equal(torch.get_rng_state(), state)
    assert head.weight.grad is None
    logits, weights = n_tokens * vocab_size * 4, vocab_size * n_embd * 4
    assert 2 * logits + weights <= peak <= 3 * logits + 3 * weights
    grouped = build_head(GroupedConfig(), n_embd, vocab_size)
    assert measure_head_peak_gib(grouped, n_tokens, n_embd, vocab_size, CPU) * GIB < peak / 4
