"""Python's warnings go to the thread that catches them, and the filters are as before afterwards."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

from shards.caught import caught_warnings


def test_warnings_are_caught_and_the_filters_restored() -> None:
    before = list(warnings.filters)
    with caught_warnings() as caught:
        for _ in range(2):
            warnings.warn("again", stacklevel=1)
        with caught_warnings() as inner:  # the same thread may catch within
            warnings.warn("inside", stacklevel=1)
    assert [str(each.message) for each in caught] == ["again", "again"]
    assert [str(each.message) for each in inner] == ["inside"]
    assert list(warnings.filters) == before


def test_threads_wait_for_each_other_and_get_their_own_warnings() -> None:
    before = list(warnings.filters)
    is_inside, order = threading.Event(), list[str]()

    def second() -> list[str]:
        assert is_inside.wait(60)
        with caught_warnings() as caught:
            order.append("second")
            warnings.warn("of the second", stacklevel=1)
        return [str(each.message) for each in caught]

    with ThreadPoolExecutor(1) as pool:
        with caught_warnings() as caught:
            is_inside.set()
            waiting = pool.submit(second)
            threading.Event().wait(0.05)  # time for the other thread to do what it must not do
            assert not waiting.done() and not order
            order.append("first")
            warnings.warn("of the first", stacklevel=1)
        assert waiting.result(60) == ["of the second"]
    assert [str(each.message) for each in caught] == ["of the first"]
    assert order == ["first", "second"] and list(warnings.filters) == before
