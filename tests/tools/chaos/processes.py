"""The processes of one command, found by a variable in their environment, and what they leave in shared memory."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .chain import ROOT

MARK = "PNEUMO_CHAOS_ROUND"
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Process:
    """A running process: its id, that of its parent, its command line and its variables."""

    pid: int
    parent: int
    command: str
    variables: dict[str, str]

    @property
    def rank(self) -> int | None:
        """The rank, for a rank itself and the processes that it starts."""
        return int(self.variables["RANK"]) if "RANK" in self.variables else None


class Running:
    """A command that runs in its own session, with its output in a file."""

    def __init__(self, command: Sequence[str], folder: Path, mark: str, log: Path, **more: str) -> None:
        self.mark, self.log = mark, log
        self._started = time.monotonic()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment(folder, mark), **more},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def sleep_until(self, seconds: float) -> None:
        """Wait until the command has run for that long, or has ended."""
        while self.is_running and self.seconds < seconds:
            time.sleep(0.01)

    def send(self, number: signal.Signals, pids: Sequence[int]) -> None:
        """Send a signal to processes that may have ended."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """Send a signal to the process group, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def all(self) -> list[Process]:
        """Return the command's process and all that it started, directly or not."""
        return marked(self.mark)

    def leaves(self) -> list[Process]:
        """Return the processes that have started no other."""
        found = self.all()
        parents = {each.parent for each in found}
        return [each for each in found if each.pid not in parents]

    def rank(self, number: int) -> list[Process]:
        """Return the process of one rank; none before it is started or after it has ended."""
        return [each for each in _ranks(self.all()) if each.rank == number]

    def workers(self) -> list[Process]:
        """Return the processes that the ranks, or a command without ranks, started."""
        found = self.all()
        ranks = {each.pid for each in _ranks(found)}
        if ranks:  # the agent has no rank
            return [each for each in found if each.rank is not None and each.pid not in ranks]
        return [each for each in found if each.pid != self.process.pid]

    def wait_for_all(self, seconds: float) -> list[Process]:
        """Wait until no process is left, at most for some seconds; return those that are left."""
        deadline = time.monotonic() + seconds
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def kill_all(self) -> None:
        """Kill every process that is left."""
        while left := self._left():
            self.send(signal.SIGKILL, [each.pid for each in left])
            time.sleep(0.02)

    def _left(self) -> list[Process]:
        self.process.poll()
        return self.all()


def _ranks(processes: Sequence[Process]) -> list[Process]:
    """Return the ranks themselves. What a rank starts inherits its variables."""
    found = [each for each in processes if each.rank is not None]
    pids = {each.pid for each in found}
    return [each for each in found if each.parent not in pids]


def environment(folder: Path, mark: str) -> dict[str, str]:
    """Return the variables of a command: one thread, temporary files in the chain's folder, and the mark."""
    outer = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder / "tmp"), MARK: mark}
    return {**kept, **own, "PYTHONPATH": str(ROOT)}


def marked(mark: str) -> list[Process]:
    """Return the running processes that have a mark in their environment. A zombie has none."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            pairs = (path / "environ").read_bytes().split(b"\0")
            variables = dict(pair.decode(errors="replace").partition("=")[::2] for pair in pairs if b"=" in pair)
            if variables.get(MARK) != mark:
                continue
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if fields[0] != "Z":
                found.append(Process(int(path.name), int(fields[1]), command, variables))
    return found


def shared_memory() -> set[str]:
    """Return the names in shared memory, semaphores included."""
    return {path.name for path in SHARED_MEMORY.iterdir()}


def own_mounts() -> bool:
    """Give this process and its children their own shared memory and mounts; return whether it may do that."""
    new_mounts, recursive_private = 0x00020000, 0x4000 | 0x40000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_mounts) or libc.mount(b"none", b"/", None, recursive_private, None):
        return False
    return bool(libc.mount(b"tmpfs", str(SHARED_MEMORY).encode(), b"tmpfs", 0, b"mode=1777") == 0)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a disk of `size` bytes at a folder. `resize` changes its size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def resize(folder: Path, size: int) -> None:
    """Change the size of a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
