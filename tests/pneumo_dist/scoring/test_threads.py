"""Threads that work on films: results and errors come in the order of the films, whichever thread is faster."""

import threading
import time
from collections.abc import Iterator

import cv2
import pytest

from pneumo_dist.ranks.environment import NEEDED
from pneumo_dist.scoring.threads import in_order, usable_threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_are_in_the_order_of_the_items(threads: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_order(work, range(50), threads)) == [item * item for item in range(50)]
    assert list(in_order(work, [], threads)) == []


def test_the_first_error_in_order_is_raised() -> None:
    def work(item: int) -> int:
        if item == 4:
            time.sleep(0.02)
        if item in (4, 5):
            raise ValueError(item)
        return item

    found: list[int] = []
    with pytest.raises(ValueError, match="4"):
        found.extend(in_order(work, range(20), 3))
    assert found == [0, 1, 2, 3]


def test_only_a_few_items_are_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(1000):
            taken += 1
            yield item

    results = in_order(lambda item: item, items(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert taken < 20
    del results


def test_threads_work_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=20)
    assert len(list(in_order(lambda _: meeting.wait(), range(4), 2))) == 4


def test_opencv_keeps_its_threads_afterwards() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        inside = list(in_order(lambda _: cv2.getNumThreads(), range(3), 2))
        assert (inside, cv2.getNumThreads()) == ([1, 1, 1], 2)
    finally:
        cv2.setNumThreads(before)


def test_ranks_of_a_node_share_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumo_dist.scoring.threads.allowed_cpus", lambda: 12.0)
    for name in (*NEEDED, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert usable_threads() == 12
    for name, value in zip(NEEDED, ("0", "4", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert usable_threads() == 3
    monkeypatch.setattr("pneumo_dist.scoring.threads.allowed_cpus", lambda: 0.5)
    assert usable_threads() == 1
