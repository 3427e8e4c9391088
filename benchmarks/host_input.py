"""Costs of the host for the input part of `benchmarks.host_costs`.

The graph here has what a rank's processors do for a GPU and nothing else: its inputs, or its inputs and the decoding of
PNG films. So the time of the thread that runs the graph of inputs alone is the time in which that thread holds Python's
lock. It is CPU time (`time.thread_time`) without waiting for batches, and includes DALI's own Python. Decoding runs in
DALI's threads, which do not take the lock. Its core time is that of all threads and processes.

Small ops are additions of small tensors. As many as take the time of a batch at a GPU's rate alternate with taking a
batch of inputs, as in training. Their time is compared with that of the same ops alone, in turns.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from benchmarks.common import FilmSet, cpu_seconds
from benchmarks.host_cost import HostCost
from benchmarks.reference_films import RECIPE_A
from benchmarks.scaling import RATES
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.dali import _input_nodes
from pneumo_dist.data.dali_inputs import input_table
from pneumo_dist.data.film_inputs import FilmInputs
from pneumo_dist.data.films import FilmReader, FilmRequest, InputSpec
from shards.dataset.table import Shards

FILMS, POSITIVE_RATE = 48, 0.22
SIZE, BATCH = 512, 16
RATE = RATES["se_resnext50_32x4d"]
RUNS, TURNS = 40, 5
START = "from pathlib import Path; from benchmarks.host_input import start; print(start(Path({folder!r})))"


def costs(work: Path) -> list[HostCost]:
    """Measure the part; `work` keeps films and shards."""
    torch.set_num_threads(1)
    folder = FilmSet(FILMS, 1024, POSITIVE_RATE).shards(work)
    film = f"1024 to {SIZE} px, PNG, recipe A"
    program = START.format(folder=str(folder))
    seconds = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(TURNS)
    ]
    reader = _reader(folder)
    with _graph(reader, decodes=False) as take:
        lock = min(_lock_us(take) for _ in range(TURNS))
        slowed = statistics.median(_slowdown(take) for _ in range(TURNS))
    with _graph(reader, decodes=True) as take:
        core = min(_core_ms(take) for _ in range(TURNS))
    return [
        HostCost("input", f"Python under the trainer's lock for a film, {film}", "µs", "450 to 520", lock, 60),
        HostCost("input", f"core time of a film with decoding, {film}", "ms", "7.2 to 7.5", core, 9.1),
        HostCost("input", f"small torch ops while loading at {RATE:.0f} films/s", "x", "1.3 to 3.7", slowed, 1.1),
        HostCost("input", "start of the process that reads films, to its first batch", "s", "0", min(seconds)),
    ]


def start(folder: Path) -> float:
    """Return the seconds from the start of the first process that reads films to its first batch, after imports."""
    reader, begun = _reader(folder), time.perf_counter()
    inputs = FilmInputs(reader, _requests(reader, 1), BATCH)
    inputs()
    seconds = time.perf_counter() - begun
    inputs.close()
    return seconds


def _reader(folder: Path) -> FilmReader:
    return FilmReader(Shards(folder), InputSpec(SIZE, 3, DataConfig(), device_id=0), True, RECIPE_A, seed=1)


def _requests(reader: FilmReader, epochs: int) -> list[list[FilmRequest]]:
    rows = len(reader.shards)
    return [[FilmRequest(row % rows, epoch, 0) for row in range(BATCH)] for epoch in range(epochs)]


@dataclass(frozen=True)
class _Batches:
    """An endless stream of a batch, augmented in another way each time."""

    rows: int

    def __iter__(self) -> Iterator[list[FilmRequest]]:
        number = 0
        while True:
            films = range(number * BATCH, (number + 1) * BATCH)
            yield [FilmRequest(film % self.rows, film // self.rows, number) for film in films]
            number += 1


@contextmanager
def _graph(reader: FilmReader, decodes: bool) -> Iterator[Callable[[], object]]:
    """Yield a function that takes the next batch of inputs, decoded on the host if `decodes`."""
    table, inputs = input_table(reader), FilmInputs(reader, _Batches(len(reader.shards)), BATCH)

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=2, exec_dynamic=False)  # type: ignore[untyped-decorator]
    def define() -> Any:
        nodes = _input_nodes(table, inputs)
        if decodes:
            for name in reader.members:
                nodes[name] = fn.decoders.image(nodes[name], device="cpu", output_type=types.GRAY)
        return tuple(nodes.values())

    pipeline = define()
    pipeline.build()

    def take() -> None:
        pipeline.run()
        inputs.release()

    for _ in range(RUNS):
        take()
    try:
        yield take
    finally:
        inputs.close()


def _lock_us(take: Callable[[], object]) -> float:
    before = time.thread_time()
    for _ in range(RUNS):
        take()
    return (time.thread_time() - before) / (RUNS * BATCH) * 1e6


def _core_ms(take: Callable[[], object]) -> float:
    before = cpu_seconds()
    for _ in range(RUNS):
        take()
    return (cpu_seconds() - before) / (RUNS * BATCH) * 1e3


def _slowdown(take: Callable[[], object]) -> float:
    """Return the time of small ops and batches over that of the ops alone."""
    count = _ops_in(BATCH / RATE)
    alone = np.median([_seconds(lambda: _ops(count)) for _ in range(RUNS)])

    def load() -> None:
        _ops(count)
        take()

    loading = np.median([_seconds(load) for _ in range(RUNS)])
    return float(loading / alone)


def _ops_in(seconds: float) -> int:
    """Return the number of small ops that take this long."""
    return max(1, int(1000 * seconds / min(_seconds(lambda: _ops(1000)) for _ in range(TURNS))))


def _ops(count: int) -> None:
    value = torch.zeros(16)
    for _ in range(count):
        value = value + 1.0


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
