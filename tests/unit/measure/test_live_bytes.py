"""The bytes of sparse tensors are those of their parts."""

import torch

from grouped_lm.measure.live_bytes import parts_of


def test_the_parts_of_dense_and_sparse_tensors():
    dense = torch.eye(3)
    assert parts_of(dense) == (dense,)
    assert parts_of("text") == ()
    coo = dense.to_sparse()
    assert [part.numel() for part in parts_of(coo)] == [6, 3]
    csr = dense.to_sparse_csr()
    assert [part.numel() for part in parts_of(csr)] == [4, 3, 3]
    assert parts_of(csr)[2].data_ptr() == csr.values().data_ptr()
