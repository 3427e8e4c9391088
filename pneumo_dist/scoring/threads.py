"""Threads that work on films side by side. Imports no torch.

Reading, decoding and counting release Python's lock, so threads use all cores and share the memory of one process.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2

from pneumo_dist.ranks.cpus import allowed_cpus, ranks_here

Item = TypeVar("Item")
Result = TypeVar("Result")
# Memory grows with the threads, and Python's lock leaves nothing to do for more of them.
_MOST_THREADS = 16
# Results that wait for an earlier one, by thread.
_AHEAD = 4


def usable_threads() -> int:
    """Return the number of threads that use this process's share of the CPUs."""
    return max(1, min(_MOST_THREADS, int(allowed_cpus() / ranks_here(os.environ))))


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """Yield the result of `work` for each item, in the order of the items; the first error in this order is raised.

    Only a few results are kept at a time. `threads` defaults to `usable_threads`.
    """
    count = usable_threads() if threads is None else threads
    with _single_threaded_opencv(), ThreadPoolExecutor(count, "films") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == count * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    """Keep OpenCV to the calling threads, which would otherwise wait for each other."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
