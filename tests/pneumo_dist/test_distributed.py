"""One process alone: collectives give back what they were given."""

import numpy as np
import pytest
import torch

from pneumo_dist.distributed import Ranks, pick_device, process_group

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def test_collectives_alone_are_identities() -> None:
    assert ALONE.is_main and ALONE.device_id is None
    assert ALONE.gather_bytes(b"") == [b""]
    assert ALONE.gather_bytes(b"abc") == [b"abc"]
    for array in (np.arange(6).reshape(2, 3), np.zeros((0, 5), np.uint8), np.array([1.5, -0.0])):
        (found,) = ALONE.gather_array(array)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(ALONE.sum(np.array([0.1, 2.0])), [0.1, 2.0])


def test_broadcast_gives_back_plain_types() -> None:
    for value in (None, 3, "text", {"a": [1, 2.5, None]}):
        assert ALONE.broadcast_json(value) == value


def test_pickled_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="pickle"):
        ALONE.gather_array(np.array([{"a": 1}], dtype=object))


def test_buffers_alone_are_left_as_they_are() -> None:
    norm = torch.nn.BatchNorm2d(2)
    norm(torch.randn(4, 2, 3, 3))
    before = [buffer.clone() for buffer in norm.buffers()]
    ALONE.broadcast_buffers(norm)
    assert all(torch.equal(one, other) for one, other in zip(norm.buffers(), before, strict=True))


def test_without_torchrun_a_process_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with process_group(cpu=True) as ranks:
        assert (ranks.rank, ranks.world, ranks.control) == (0, 1, None)
        assert ranks.device == torch.device("cpu")
        assert not torch.distributed.is_initialized()


def test_cpu_is_taken_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(0, cpu=True) == torch.device("cpu")
