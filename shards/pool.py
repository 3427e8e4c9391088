"""Worker processes that are fed over pipes.

Python's own pools name semaphores in shared memory. They would stay there after a kill of the whole process group,
which also kills the process that removes them.
"""

import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Job = TypeVar("Job")

# For a worker that ends a job early to remove its temporary files.
_PATIENCE_SECONDS = 10.0


class WorkerDied(Exception):
    """A worker process ended before its job was done, for example because memory ran out."""


def each_done(context: Any, work: Callable[[Job], object], jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    """Do `work` on each job in worker processes, and yield each job as soon as it is done, in any order.

    Args:
        context: multiprocessing's context that starts the workers, such as that of `shards.workers.fork_server`.
        work: A function of a module. Its result is dropped.
        jobs: What it is called with; they are pickled.
        workers: The number of processes, at most one for each job.

    Raises:
        WorkerDied: A worker ended without an answer.
        Exception: What `work` raised first, with the worker's traceback as a note. The other workers are then stopped
            in the middle of their jobs.
    """
    waiting = deque(jobs)
    with _workers(context, work, min(workers, len(jobs))) as free:
        busy: dict[Connection, Job] = {}
        while waiting or busy:
            while free and waiting:
                connection = free.pop()
                busy[connection] = waiting.popleft()
                _send(connection, busy[connection])
            ready = set(wait(list(busy)))
            for connection in [each for each in busy if each in ready]:
                job = busy.pop(connection)
                _check(connection)
                free.append(connection)
                yield job


def _send(connection: Connection, job: object) -> None:
    # If the worker has died, its answer tells.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.send(job)


def _check(connection: Connection) -> None:
    try:
        error: Exception | None = connection.recv()
    except (EOFError, ConnectionResetError):
        raise WorkerDied from None
    if error is not None:
        raise error


@contextmanager
def _workers(context: Any, work: Callable[[Any], object], count: int) -> Iterator[list[Connection]]:
    """Start workers, yield a connection to each, and end them: at once if there was an error."""
    connections, processes = [], []
    try:
        for number in range(count):
            ours, theirs = context.Pipe()
            connections.append(ours)
            process = context.Process(target=_serve, args=(theirs, work), name=f"worker {number}", daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
        yield list(connections)
    finally:
        for process in processes:
            process.terminate()
        # A worker that misses the signal, because it is just starting, ends after at most one job.
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(_PATIENCE_SECONDS)
            process.kill()
            process.join()


def _serve(connection: Connection, work: Callable[[Any], object]) -> None:
    """Do each job that is received. A signal ends the job as Ctrl-C does, so that it removes its temporary files."""
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError, ConnectionResetError):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        while True:
            job = connection.recv()
            try:
                work(job)
            except Exception as error:
                error.add_note(traceback.format_exc())
                connection.send(error)
            else:
                connection.send(None)
