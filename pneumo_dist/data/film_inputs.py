"""A process per pipeline that computes the inputs of the DALI graph, so that Python does not hold up training.

The process imports neither torch nor DALI. It writes the inputs of a batch into memory that it shares with the rank,
and the rank hands DALI arrays of that memory. The memory has no name, so none is left behind by a killed rank.
"""

import contextlib
import mmap
import os
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection

import cv2
import numpy as np

from pneumo_dist.data.dali_inputs import Array, GraphInput, graph_inputs, input_table
from pneumo_dist.data.films import FilmReader, FilmRequest
from pneumo_dist.data.servers import start_server
from pneumo_dist.ranks.processes import become_worker, kill_workers_at_exit
from shards.errors import InputError

# Batches that the process prepares beyond those that DALI has taken.
_AHEAD = 2
# Batches that fit into the shared memory. DALI keeps `data.prefetch`, at most 16, and one or two more.
_SLOTS = 32
_ALIGNMENT = 64

# Offset and shape of an array.
Place = tuple[int, tuple[int, ...]]
# Row, epoch and step of a requested film: a tuple is pickled in less time than a FilmRequest.
Film = tuple[int, int | None, int | None]
# A batch whose inputs lie in shared memory: its films, and for each input the place of one array, or of one for each
# film if shapes differ.
Prepared = tuple[list[Film], list[Place | list[Place]]]


class FilmInputs:
    """The inputs of a DALI graph, batch by batch, from a process of their own. Ends with its rank at the latest.

    DALI calls it for each batch and reads the arrays without a copy, until `release` says that the batch is computed.
    DALI stops a pipeline before it drops the pipeline's source, so the memory outlives all reads.

    Raises:
        InputError: A film cannot be read, with its shard, key, epoch and step; or the process ended.
    """

    def __init__(self, reader: FilmReader, requests: Iterable[list[FilmRequest]], batch: int) -> None:
        self._table = input_table(reader)
        slot_bytes = _slot_bytes(reader, batch)
        descriptor = os.memfd_create("films")
        try:
            # Pages that are never written take no memory.
            os.ftruncate(descriptor, _SLOTS * slot_bytes)
            self._memory = mmap.mmap(descriptor, _SLOTS * slot_bytes)
            self._start(descriptor, reader, requests, slot_bytes)
        finally:
            os.close(descriptor)
        self._last: Exception | None = None
        self._free = deque(range(_SLOTS))
        self._asked: deque[int] = deque()
        self._taken: deque[tuple[int, list[Film]]] = deque()
        for _ in range(_AHEAD):
            self._ask()

    def _start(
        self, descriptor: int, reader: FilmReader, requests: Iterable[list[FilmRequest]], slot_bytes: int
    ) -> None:
        context = start_server("dali")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_prepare, args=(theirs, reader, requests, slot_bytes), name="films", daemon=True
        )
        kill_workers_at_exit()
        self._process.start()
        theirs.close()
        reduction.send_handle(self._connection, descriptor, self._process.pid)

    @property
    def pending(self) -> list[FilmRequest]:
        """The films that DALI has taken and not yet computed, in order."""
        return [FilmRequest(*film) for _, films in self._taken for film in films]

    def __call__(self) -> list[Array | list[Array]]:
        """Return the inputs of the next batch, in the order of the graph's table."""
        # DALI asks again after the end, while it computes the batches before it.
        if self._last is None:
            prepared = self._receive()
            if not isinstance(prepared, Exception):
                return self._take(*prepared)
            self._last = prepared
        raise self._last

    def _receive(self) -> Prepared | Exception:
        try:
            message: Prepared | Exception = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return InputError(
                f"the process that reads films ended (exit code {self._process.exitcode}); out of memory? check dmesg, "
                "then request more memory or lower data.prefetch"
            )
        return message

    def _take(self, films: list[Film], places: list[Place | list[Place]]) -> list[Array | list[Array]]:
        self._taken.append((self._asked.popleft(), films))
        self._ask()
        return [self._arrays(row, each) for row, each in zip(self._table, places, strict=True)]

    def _arrays(self, row: GraphInput, places: Place | list[Place]) -> Array | list[Array]:
        if isinstance(places, tuple):
            return _array(self._memory, row, places)
        return [_array(self._memory, row, place) for place in places]

    def _ask(self) -> None:
        slot = self._free.popleft()
        self._asked.append(slot)
        # If the process has ended, `recv` tells.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send_bytes(bytes([slot]))

    def release(self) -> list[int]:
        """Return the rows of the oldest batch that DALI has taken; its memory is used again."""
        slot, films = self._taken.popleft()
        self._free.append(slot)
        return [row for row, _, _ in films]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _array(memory: mmap.mmap, row: GraphInput, place: Place) -> Array:
    offset, shape = place
    return np.ndarray(shape, row.dtype, memory, offset)


def _slot_bytes(reader: FilmReader, batch: int) -> int:
    """Return more bytes than the inputs of any batch take."""
    side = reader.input_spec.size + 2
    members = sum(int(reader.shards.column(f"{member}_size").max()) for member in reader.members)
    # A coarse map has at most a node for each pixel, of two float32; noise and targets have a byte.
    film = members + side * side * 10 + 16 * _ALIGNMENT + 2**12
    return -(-batch * film // mmap.PAGESIZE) * mmap.PAGESIZE


def _prepare(
    connection: Connection, reader: FilmReader, requests: Iterable[list[FilmRequest]], slot_bytes: int
) -> None:
    """Answer each slot with the next batch in it, then with StopIteration or an error. Runs in a process of its own."""
    become_worker()
    cv2.setNumThreads(0)
    try:
        with _exit_with_the_rank():
            descriptor = reduction.recv_handle(connection)
        memory = mmap.mmap(descriptor, _SLOTS * slot_bytes)
        os.close(descriptor)
        table, writer = input_table(reader), _Writer(memory)
        for films in requests:
            with _exit_with_the_rank():
                start = slot_bytes * connection.recv_bytes()[0]
            inputs = [graph_inputs(table, reader, film) for film in films]
            places = writer.write(table, list(zip(*inputs, strict=True)), start)
            with _exit_with_the_rank():
                connection.send(([(film.index, film.epoch, film.step) for film in films], places))
        last: Exception = StopIteration()
    except InputError as error:
        last = error
    except Exception as error:
        error.add_note(traceback.format_exc())
        last = error
    with _exit_with_the_rank():
        connection.send(last)
        # The rank closes its end. If this process ended first, the rank could not send to it.
        while connection.poll(None):
            connection.recv_bytes()


@contextlib.contextmanager
def _exit_with_the_rank() -> Iterator[None]:
    """End this process without a report if the rank is gone. The kernel's signal may arrive after the closed pipe."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise SystemExit(0) from None


class _Writer:
    """Writes arrays one after the other into shared memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory, self._next = memory, 0

    def write(
        self, table: Sequence[GraphInput], inputs: Sequence[tuple[Array, ...]], start: int
    ) -> list[Place | list[Place]]:
        """Write the values of all films for each input, from an offset on, and return their places."""
        self._next = start
        return [self._put_all(row, values) for row, values in zip(table, inputs, strict=True)]

    def _put_all(self, row: GraphInput, values: tuple[Array, ...]) -> Place | list[Place]:
        # DALI's Python takes several microseconds for each array.
        if all(value.shape == values[0].shape for value in values):
            return self._put(row, np.stack(values))
        return [self._put(row, value) for value in values]

    def _put(self, row: GraphInput, value: Array) -> Place:
        place = self._next, value.shape
        _array(self._memory, row, place)[...] = value
        self._next += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        return place
