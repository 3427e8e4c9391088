"""Buffers are reused only when nothing refers to them."""

import torch

from pneumo_dist.data.buffers import BufferPool


def test_buffer_is_reused_only_after_its_tensor_and_all_views_are_gone() -> None:
    buffers = BufferPool()
    first = buffers.take(4096, torch.float32)
    address, view = first.data_ptr(), first[10:20]
    view.fill_(7)
    del first
    assert buffers.take(4096, torch.float32).data_ptr() != address, "a view still refers to it"
    assert view.tolist() == [7.0] * 10
    del view
    again = [buffers.take(4096, torch.uint8) for _ in range(3)]
    assert sum(tensor.data_ptr() == address for tensor in again) == 1
    assert len({tensor.data_ptr() for tensor in again}) == 3
    assert buffers.take(8192, torch.uint8).shape == (8192,)
