"""Catches Python's warnings. Their filters belong to the whole process, so one thread at a time changes them."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def caught_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Yield a list that gets every warning inside the context, and show none of them.

    Threads that catch warnings wait for each other: otherwise one would get the warnings of another, and the last to
    leave would restore the filters of the first.
    """
    with _LOCK, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
