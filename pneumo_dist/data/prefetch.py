"""Prefetch the values of an iterator in a thread."""

import atexit
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

Value = TypeVar("Value")

_POLL_SECONDS = 0.1


def prefetch(
    values: Iterator[Value], count: int, prepare: Callable[[], object] = lambda: None
) -> Generator[Value, None, None]:
    """Yield the values of an iterator while a thread takes up to `count` more from it.

    The thread calls `prepare` first. Exceptions of the iterator are raised here. The thread ends with the iterator, or
    when this generator is closed.
    """
    ready: queue.Queue[tuple[Value] | BaseException | None] = queue.Queue(count)
    is_over = threading.Event()

    def put(item: tuple[Value] | BaseException | None) -> None:
        while not is_over.is_set():
            try:
                return ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def work() -> None:
        try:
            prepare()
            for value in values:
                put((value,))
                if is_over.is_set():
                    return
            put(None)
        except BaseException as error:  # raised in the consumer: an exception of this thread would go unnoticed
            put(error)

    def end() -> None:
        is_over.set()
        # The garbage collector may close a generator in any thread.
        if threading.current_thread() is not thread:
            thread.join()

    thread = threading.Thread(target=work, name="films", daemon=True)
    thread.start()
    # An unhandled error keeps the generator alive until Python exits, when the thread must no longer run.
    atexit.register(end)
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        atexit.unregister(end)
        end()
