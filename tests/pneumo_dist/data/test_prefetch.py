"""Prefetched values: in order, at most `count` ahead, with errors passed on and no thread left behind."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pneumo_dist.data.prefetch import prefetch


class Source:
    """An iterable that records the values taken, the threads that took them, and whether it was closed."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.count, self.error = count, error
        self.taken: list[int] = []
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.taken.append(number)
            self.threads.add(threading.get_ident())
            yield number
        if self.error is not None:
            raise self.error


def threads() -> int:
    return sum(thread.name == "films" for thread in threading.enumerate())


def eventually(length: int, source: Source) -> None:
    """Wait until `length` values are taken, and a little longer for any that should not be."""
    deadline = time.monotonic() + 5
    while len(source.taken) < length:
        assert time.monotonic() < deadline, source.taken
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(source.taken) == length


@pytest.mark.parametrize("count", [1, 3])
def test_values_come_in_order_from_another_thread_and_at_most_count_ahead(count: int) -> None:
    source = Source(20)
    values = prefetch(iter(source), count)
    assert source.taken == [] and threads() == 0, "nothing is taken before the first request"
    assert next(values) == 0
    eventually(1 + count + 1, source)  # one delivered, `count` waiting, and one held by the thread
    assert next(values) == 1
    eventually(2 + count + 1, source)
    assert list(values) == list(range(2, 20))
    assert threading.get_ident() not in source.threads and len(source.threads) == 1
    assert threads() == 0


def test_error_is_raised_in_place_of_its_value() -> None:
    values = prefetch(iter(Source(2, KeyError("film"))), 1)
    assert next(values) == 0 and next(values) == 1
    with pytest.raises(KeyError, match="film"):
        next(values)
    assert threads() == 0


def test_thread_is_prepared_before_the_first_value_and_its_error_is_raised() -> None:
    order: list[str] = []
    source = Source(1)

    def prepare() -> None:
        order.append(f"{len(source.taken)} taken")

    assert list(prefetch(iter(source), 1, prepare)) == [0] and order == ["0 taken"]

    def fail() -> None:
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match="no such device"):
        next(prefetch(iter(Source(1)), 1, fail))


@pytest.mark.parametrize("is_dropped", [False, True])
def test_thread_ends_with_its_consumer(is_dropped: bool) -> None:
    values = prefetch(iter(Source(10**6)), 2)
    assert next(values) == 0 and threads() == 1
    if is_dropped:
        del values
        gc.collect()
    else:
        values.close()
    assert threads() == 0


def test_process_that_ends_with_an_error_ends_its_thread_first() -> None:
    program = """
import itertools, time
from pneumo_dist.data.prefetch import prefetch
def slow():
    try:
        for number in itertools.count():
            time.sleep(0.2)
            yield number
    finally:
        print("left")
values = prefetch(slow(), 1)
next(values)
raise KeyError("nobody handles it")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == "left\n"
    assert "nobody handles it" in done.stderr and "films" not in done.stderr


def test_two_iterators_are_prefetched_independently() -> None:
    one, other = prefetch(iter(Source(50)), 1), prefetch(iter(Source(50)), 1)
    assert [pair[0] - pair[1] for pair in zip(one, other, strict=True)] == [0] * 50
