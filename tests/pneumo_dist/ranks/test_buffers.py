"""Copies of a model's buffers."""

import torch

from pneumo_dist.ranks.buffers import KeptBuffers


def test_restored_buffers_have_the_bits_that_were_kept_last() -> None:
    first, last = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(2)
    model = torch.nn.Sequential(first, torch.nn.Conv2d(3, 2, 1), last)
    kept, images = KeptBuffers(model), torch.rand(2, 3, 4, 4)
    for _ in range(3):
        model(images)
        before = [buffer.clone() for buffer in model.buffers()]
        kept.keep()
        model(images * float("nan"))
        assert first.running_mean is not None and not torch.isfinite(first.running_mean).any()
        kept.restore()
        assert all(torch.equal(buffer, value) for buffer, value in zip(model.buffers(), before, strict=True))
    assert last.num_batches_tracked is not None and int(last.num_batches_tracked) == 3


def test_model_without_buffers_has_nothing_to_keep() -> None:
    kept = KeptBuffers(torch.nn.Linear(2, 2))
    kept.keep()
    kept.restore()
