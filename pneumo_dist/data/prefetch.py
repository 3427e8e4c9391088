"""Values of an iterator, made ahead by a thread."""

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
    """Yield what an iterator yields; a thread, which calls `prepare` first, takes up to `count` values more from it.

    What the iterator raises is raised here. The thread ends with the iterator, or when nobody asks any more.
    """
    made: queue.Queue[tuple[Value] | BaseException | None] = queue.Queue(count)
    is_over = threading.Event()

    def put(item: tuple[Value] | BaseException | None) -> None:
        while not is_over.is_set():
            try:
                return made.put(item, timeout=_POLL_SECONDS)
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
        except BaseException as error:  # for the thread that asks: in this one nobody would hear of it
            put(error)

    def end() -> None:
        is_over.set()
        # The garbage collector may end a generator in any thread.
        if threading.current_thread() is not thread:
            thread.join()

    thread = threading.Thread(target=work, name="films", daemon=True)
    thread.start()
    # An error that nobody handles keeps the generator until Python is gone; the thread must not be at work then.
    atexit.register(end)
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        atexit.unregister(end)
        end()
