import numpy as np
import pytest
import torch

from grouped_lm.data.loader import IGNORE_INDEX, TrainBatches, ValidWindows
from grouped_lm.errors import DataError


@pytest.mark.parametrize("num_tokens", [9, 10, 15, 16, 17, 100, 1001])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_window_once_per_epoch(num_tokens, batch_size):
    block_size = 8
    batches = TrainBatches(np.arange(num_tokens, dtype=np.uint16), block_size, batch_size, seed=3)
    per_epoch = batches.windows_per_epoch
    rows = [batches.batch(i) for i in range(-(-3 * per_epoch // batch_size))]
    inputs, targets = (torch.cat(parts)[: 3 * per_epoch] for parts in zip(*rows, strict=True))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == (3 * per_epoch, block_size)
    assert torch.equal(targets, inputs + 1)
    for epoch in inputs.view(3, per_epoch, block_size):
        first = epoch[:, 0].sort().values
        assert (first.diff() == block_size).all(), "neighbours that neither overlap nor leave a gap"
        assert 0 <= first[0] < block_size
        assert num_tokens - 1 - first[-1] < 3 * block_size


def test_epochs_and_seeds_differ():
    tokens = np.arange(1000, dtype=np.uint16)
    orders = [TrainBatches(tokens, 8, 4, seed).epoch_starts(epoch) for seed in (0, 1) for epoch in range(8)]
    assert len({order.tobytes() for order in orders}) == len(orders)
    assert len({int(order.min()) for order in orders}) > 4, "offsets vary"


def test_resume_is_a_number():
    tokens = np.random.default_rng(0).integers(0, 500, 333).astype(np.uint16)
    straight = TrainBatches(tokens, 16, 6, seed=5)
    expected = [straight.batch(i) for i in range(30)]  # 20 windows per epoch: batches straddle epochs
    for index in (29, 0, 17, 3, 4, 25):
        for got, wanted in zip(TrainBatches(tokens, 16, 6, seed=5).batch(index), expected[index], strict=True):
            assert torch.equal(got, wanted)
        assert torch.equal(straight.batch(index)[0], expected[index][0]), "in any order"


def test_the_order_is_fixed_for_good():
    starts = TrainBatches(np.zeros(60, np.uint16), 10, 1, seed=0).epoch_starts(0)
    assert starts.tolist() == [21, 11, 1, 31, 41]


def test_samples_do_not_depend_on_the_batch_size():
    tokens = np.arange(500, dtype=np.uint16)
    one, four = TrainBatches(tokens, 8, 1, seed=0), TrainBatches(tokens, 8, 4, seed=0)
    for index in range(40):
        assert torch.equal(torch.cat([one.batch(4 * index + k)[0] for k in range(4)]), four.batch(index)[0])


def test_processes_read_together_what_one_reads():
    tokens = np.arange(500, dtype=np.uint16)
    alone = TrainBatches(tokens, 8, 12, seed=0)
    for processes in (1, 2, 3, 4, 12):
        parts = [TrainBatches(tokens, 8, 12, seed=0, rank=rank, processes=processes) for rank in range(processes)]
        for index in (0, 3, 7):
            for both in zip(*(part.batch(index) for part in parts), strict=True):
                assert len({rows.shape for rows in both}) == 1
            rows = torch.cat([part.batch(index)[1] for part in parts])
            assert torch.equal(rows, alone.batch(index)[1])


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_processes_validate_every_target_once_in_as_many_batches(processes):
    tokens = np.arange(1, 90, dtype=np.uint16)
    windows = ValidWindows(tokens, 8, 2)
    parts = [list(windows.part(rank, processes)) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1
    targets = torch.cat([targets.flatten() for part in parts for _, targets in part])
    assert sorted(targets[targets != IGNORE_INDEX].tolist()) == tokens[1:].tolist()


def test_too_short():
    with pytest.raises(DataError, match=r"8 tokens, model.block_size=8 needs at least 9; .* model.block_size=7"):
        TrainBatches(np.zeros(8, np.uint16), 8, 1, seed=0)
    with pytest.raises(DataError, match="1 tokens, at least 2"):
        ValidWindows(np.zeros(1, np.uint16), 8, 1)


@pytest.mark.parametrize("num_tokens", [2, 8, 9, 10, 25, 33, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_target_counts_once(num_tokens, batch_size):
    tokens = np.random.default_rng(0).integers(0, 1 << 16, num_tokens).astype(np.uint16)
    windows = ValidWindows(tokens, 8, batch_size, pad_id=7)
    batches = list(windows)
    assert len(batches) == len(windows)
    assert {(tuple(a.shape), tuple(b.shape)) for a, b in batches} == {((batch_size, 8), (batch_size, 8))}
    inputs, targets = (torch.cat(parts).flatten() for parts in zip(*batches, strict=True))
    counted = targets != IGNORE_INDEX
    assert int(counted.sum()) == windows.target_tokens == num_tokens - 1
    assert targets[counted].tolist() == tokens[1:].tolist()
    assert inputs[counted].tolist() == tokens[:-1].tolist()
    assert set(inputs[~counted].tolist()) <= {7}
    with pytest.raises(IndexError):
        windows.batch(len(windows))


def test_batches_are_copies_of_read_only_maps(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype="<u2", mode="r")
    for input_ids, targets in (TrainBatches(tokens, 8, 2, 0).batch(0), ValidWindows(tokens, 8, 2).batch(0)):
        input_ids += 1
        assert int(targets[0, 0]) == int(input_ids[0, 0])
