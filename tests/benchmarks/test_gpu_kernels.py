"""Kernels of a trace, and the largest batch that fits."""

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.gpu_batch import fitting_batch
from benchmarks.gpu_kernels import Interval, idle_share, intervals, shares_by_name


@pytest.mark.parametrize(
    ("spans", "idle"),
    [
        ([(0, 1)], 0.0),
        ([(0, 1), (1, 2)], 0.0),
        ([(0, 1), (3, 4)], 0.5),
        ([(3, 4), (0, 1)], 0.5),
        ([(0, 4), (1, 2), (3, 5)], 0.0),
        ([(0, 2), (1, 3), (7, 10)], 0.4),
        ([(0, 10), (2, 3), (12, 20)], 0.1),
    ],
)
def test_idle_time_is_the_time_in_which_no_stream_is_busy(spans: list[tuple[float, float]], idle: float) -> None:
    kernels = [Interval("kernel", start, end) for start, end in spans]
    assert idle_share(kernels) == pytest.approx(idle)
    times = [tick / 100 for tick in range(int(100 * max(end for _, end in spans)))]
    ticks = [any(start <= time < end for start, end in spans) for time in times]
    assert idle_share(kernels) == pytest.approx(1 - sum(ticks) / len(ticks), abs=0.01)


def test_only_gpu_events_count() -> None:
    events: list[dict[str, Any]] = [
        {"ph": "X", "cat": "kernel", "name": "conv", "ts": 1_000_000.0, "dur": 500_000.0},
        {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "ts": 2_000_000, "dur": 250_000},
        {"ph": "X", "cat": "cpu_op", "name": "aten::conv", "ts": 0, "dur": 9_000_000},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 9},
        {"ph": "M", "name": "process_name"},
    ]
    assert intervals(events) == [Interval("conv", 1.0, 1.5), Interval("copy", 2.0, 2.25)]


def test_kernels_are_listed_by_their_share_the_largest_first() -> None:
    kernels = [Interval("a", 0, 1), Interval("b", 1, 4), Interval("a", 4, 5)]
    assert shares_by_name(kernels) == [("b", 0.6), ("a", 0.4)]


def linear(batch: int) -> float:
    return 0.05 + 0.03 * batch


def curved(batch: int) -> float:
    return 0.05 + 0.02 * batch + 0.0004 * batch**2


def stepped(batch: int) -> float:
    return 0.1 * -(-batch // 2)


def walled(batch: int) -> float:
    return 0.01 * batch if batch <= 9 else float("inf")


@pytest.mark.parametrize("share", [linear, curved, stepped, walled])
@pytest.mark.parametrize("most", [1, 2, 8, 48])
def test_batch_fits_and_is_nearly_the_largest(share: Callable[[int], float], most: int) -> None:
    tried: list[int] = []

    def recorded_share(batch: int) -> float:
        tried.append(batch)
        return share(batch)

    batch = fitting_batch(recorded_share, 0.7, most)
    best = max(batch for batch in range(1, most + 1) if share(batch) <= 0.7)
    assert share(batch) <= 0.7 and batch <= best
    assert batch >= best - max(0, best // 16)
    assert len(tried) < 12


def test_network_too_large_for_a_single_image_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="one image takes 90% of the GPU's memory, more than 70%"):
        fitting_batch(lambda batch: 0.9 * batch, 0.7, 8)
