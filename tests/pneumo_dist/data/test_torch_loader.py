"""Worker processes of the loaders ignore the rank's signals and end with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pneumo_dist.data import torch_loader
from pneumo_dist.ranks.processes import become_worker
from shards.dataset.table import Shards
from shards.errors import InputError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")

SHM = Path("/dev/shm")
PATIENCE = 60.0
# Of a rank that trains and validates, with `data.threads: 2`.
WORKERS = {"torch": 4, "dali": 2}
EACH_LOADER = pytest.mark.parametrize("name", WORKERS)
# A rank that takes batches and prints a line for each; `ends` says how it leaves its loader.
RANK = """
import sys, time
from pathlib import Path
import numpy as np
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import InputSpec
from pneumo_dist.data.loader import eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, FoldSplit
from shards.errors import InputError
from shards.dataset.table import Shards
from shards.errors import InputError

folder, name, count, ends = sys.argv[1:]
shards, rows = Shards(Path(folder)), np.arange(12)
stage = StageConfig(name="main", global_batch=2, micro_batch=2, epochs=10_000, image_size=64, eval_batch=4)
plan = EpochPlan(FoldSplit(rows, rows, rows[:0], rows[:0], rows), stage, 0, 1)
input_spec = InputSpec(64, 1, DataConfig(loader=name, threads=2))

class Run:
    def __init__(self):
        self.batches = train_batches(shards, plan, input_spec, 0, 0, 0)
        self.evaluation = eval_loader(shards, rows, stage, input_spec, 0, 1, with_mask=True)

run = Run()
try:
    print("ready", len(list(run.evaluation)), flush=True)
    for number, batch in zip(range(int(count)), run.batches):
        print("batch", number, flush=True)
        time.sleep(0.02)
except InputError as error:
    print("error", error, flush=True)
if ends == "dropped":
    del run
print("end", flush=True)
"""


class Rank:
    """A rank's process and the processes that it has started."""

    def __init__(self, shards: Shards, name: str, count: int, ends: str, folder: Path) -> None:
        self.log = folder / "errors"
        command = [sys.executable, "-c", RANK, str(shards.folder), name, str(count), ends]
        path = os.pathsep.join(filter(None, sys.path))
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "PYTHONPATH": path}
            )

    def line(self, start: str) -> str:
        """Read up to the next line that starts with a word."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line.strip()
        raise AssertionError(f"no line {start}; {self.log.read_text()}")

    def children(self) -> set[int]:
        """Return the processes that it started, including the server of its workers and Python's tracker."""
        return {pid for pid in alive() if parent_of(pid) == self.process.pid}

    def workers(self) -> set[int]:
        """Return the loaders' workers, which the server forks."""
        children = self.children()
        return {pid for pid in alive() if parent_of(pid) in children}

    def shared_memory(self) -> set[Path]:
        """Return the shared memory that the rank and its workers have mapped or opened, even if deleted."""
        paths = set()
        for pid in {self.process.pid, *self.children(), *self.workers()}:
            folder = Path(f"/proc/{pid}")
            try:
                names = [line.split(maxsplit=5)[-1] for line in (folder / "maps").read_text().splitlines()]
                names += [str(path.readlink()) for path in (folder / "fd").iterdir()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            paths |= {Path(name.removesuffix(" (deleted)").strip()) for name in names if name.startswith(f"{SHM}/")}
        return paths

    def output(self) -> str:
        """Wait until it ends and return the rest of its output."""
        return self.process.communicate(timeout=PATIENCE)[0]


def alive() -> list[int]:
    """Return every process that is not a zombie."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and parent_of(int(path.name))]


def parent_of(pid: int) -> int | None:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)


def server_of(workers: set[int]) -> set[int]:
    """Return the process that forked them."""
    return {parent for parent in map(parent_of, workers) if parent is not None}


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def start(films: Shards, tmp_path: Path) -> Iterator[Callable[..., Rank]]:
    """Starts ranks, and checks afterwards that none of their processes is left."""
    ranks: list[Rank] = []

    def begin(name: str = "torch", count: int = 100_000, ends: str = "held", shards: Shards = films) -> Rank:
        ranks.append(Rank(shards, name, count, ends, tmp_path))
        return ranks[-1]

    yield begin
    for rank in ranks:
        workers = rank.workers() | rank.children()
        rank.process.kill()
        rank.process.communicate()
        until(gone(workers), "a worker outlived its rank")


def gone(workers: set[int]) -> Callable[[], bool]:
    return lambda: not workers & set(alive())


def assert_nothing_left(workers: set[int], pids: set[int], memory: set[Path]) -> None:
    until(gone(workers), "a worker outlived its rank")
    # torch names shared memory after the process that created it.
    names = {path.name for path in SHM.iterdir()} if SHM.is_dir() else set()
    assert not names & {path.name for path in memory}
    assert not [name for name in names for pid in pids if f"_{pid}_" in name]


@pytest.mark.slow
@EACH_LOADER
def test_workers_ignore_the_ranks_signals_and_the_stream_continues(start: Callable[..., Rank], name: str) -> None:
    rank = start(name, count=60)
    rank.line("batch")
    workers, memory = rank.workers(), rank.shared_memory()
    assert len(workers) == WORKERS[name]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        for worker in workers | server_of(workers):
            os.kill(worker, number)
        for _ in range(5):
            rank.line("batch")
        assert rank.workers() == workers
        memory |= rank.shared_memory()
    assert bool(memory) == (name == "torch"), "shared memory of the torch loader has names"
    assert rank.line("batch 59")
    rank.output()
    assert rank.process.returncode == 0, rank.log.read_text()
    assert_nothing_left(workers, {rank.process.pid, *workers}, memory)


@pytest.mark.slow
@EACH_LOADER
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_when_their_rank_is_killed(start: Callable[..., Rank], number: int, name: str) -> None:
    rank = start(name)
    rank.line("batch")
    workers, memory = rank.workers(), rank.shared_memory()
    assert len(workers) == WORKERS[name] and any(path.name.startswith("sem.") for path in memory) == (name == "torch")
    workers |= rank.children()
    os.kill(rank.process.pid, number)
    rank.output()
    assert rank.process.returncode == -number
    assert_nothing_left(workers, {rank.process.pid, *workers}, set())
    until(lambda: not any(path.exists() for path in memory), "shared memory or semaphores are left")


@pytest.mark.slow
@EACH_LOADER
@pytest.mark.parametrize("ends", ["held", "dropped"])
def test_rank_that_leaves_its_loaders_in_the_middle_ends_with_all_its_workers(
    start: Callable[..., Rank], ends: str, name: str
) -> None:
    rank = start(name, count=3, ends=ends)
    rank.line("batch")
    workers = rank.workers()
    rank.line("end")
    if ends == "dropped":
        assert rank.workers() == set()
    rank.output()
    assert rank.process.returncode == 0, rank.log.read_text()
    assert_nothing_left(workers, {rank.process.pid, *workers}, set())


@pytest.mark.slow
@EACH_LOADER
def test_rank_that_meets_a_corrupt_film_ends_with_all_its_workers(
    start: Callable[..., Rank], damaged: tuple[Shards, str, str], name: str
) -> None:
    shards, _, key = damaged
    rank = start(name, count=10, shards=shards)
    assert key in rank.line("error")
    workers = rank.workers()
    rank.output()
    assert rank.process.returncode == 0, rank.log.read_text()
    assert_nothing_left(workers, {rank.process.pid, *workers}, set())


def test_worker_whose_rank_is_already_dead_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent dies after the worker read its id, and before the worker asked the kernel to die with it."""
    read, write = os.pipe()
    parents = iter([os.getpid(), 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    worker = os.fork()
    if worker == 0:
        try:
            become_worker()
            os.write(write, b"alive")
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 10) == b""
    os.close(read)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "said", ["DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that …", "(pid(s) 3) exited"]
)
def test_a_lost_worker_is_one_line_that_names_shared_memory(said: str) -> None:
    def batches() -> Iterator[torch_loader.Collated]:
        yield from ()
        raise RuntimeError(said)

    if "Bus error" in said:
        with pytest.raises(InputError, match=r"a loader's worker ended \(killed by signal: Bus\); is /dev/shm full"):
            list(torch_loader._with_short_errors(batches()))
    else:
        with pytest.raises(RuntimeError, match="exited"):
            list(torch_loader._with_short_errors(batches()))
