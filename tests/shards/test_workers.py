"""Workers and their server end with the process that started them, and leave nothing in the folder for sockets."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.workers import fork_server, temporaries_of_workers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of a death")

# Prints its server and its workers, which then wait.
STARTER = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from shards.workers import fork_server

if __name__ == "__main__":
    context = fork_server("shards.locks")
    with ProcessPoolExecutor(2, context) as pool:
        workers = {pool.submit(os.getpid).result() for _ in range(4)}
        waits = [pool.submit(time.sleep, float(sys.argv[1])) for _ in range(2)]
        print(forkserver._forkserver._forkserver_pid, *pool._processes, flush=True)
        print(*[wait.result() for wait in waits], end="")
"""


class Started:
    """A process with a server and two workers, and an own folder for temporary files."""

    def __init__(self, temporary: Path, seconds: float) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(seconds)],
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.server, *self.workers = map(int, self.process.stdout.readline().split())

    def rest(self) -> tuple[str, str]:
        """Wait for its end, and return what it has printed since its first line, and its errors."""
        self.process.wait(timeout=20)
        # Not `communicate`, which loses what is read ahead of the first line.
        assert self.process.stdout is not None and self.process.stderr is not None
        with self.process.stdout as out, self.process.stderr as errors:
            return out.read(), errors.read()

    def is_gone(self) -> bool:
        """Wait until server and workers have ended; False if they do not."""
        deadline = time.monotonic() + 20
        while any(is_running(pid) for pid in (self.server, *self.workers)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a name short enough for sockets."""
    folder = Path(f"/tmp/sockets-{os.getpid()}")
    folder.mkdir()
    yield folder
    for path in folder.rglob("*"):
        assert not path.exists(), f"{path} is left"
    folder.rmdir()


def test_workers_end_with_the_process_and_the_next_removes_its_socket(temporary: Path) -> None:
    killed = Started(temporary, 60)
    assert len(killed.workers) == 2
    killed.process.kill()
    assert killed.is_gone()
    assert killed.rest() == ("", ""), "Python's tracker reports what it cleans up"
    assert len(list(temporary.iterdir())) == 1
    done = Started(temporary, 0)
    assert done.rest() == ("None None", "")
    assert done.process.returncode == 0
    assert list(temporary.iterdir()) == []


def test_workers_end_with_their_server(temporary: Path) -> None:
    started = Started(temporary, 60)
    os.kill(started.server, signal.SIGKILL)
    assert started.is_gone()
    assert "BrokenProcessPool" in started.rest()[1]
    assert started.process.returncode == 1, "the process learns of it"


def test_a_folder_whose_path_is_too_long_for_a_socket_is_not_used(tmp_path: Path) -> None:
    temporary = tmp_path / ("long" * 25)
    temporary.mkdir()
    started = Started(temporary, 0.0)
    assert started.workers
    assert started.rest() == ("None None", "")
    assert started.is_gone() and not list(temporary.iterdir())


def test_threads_change_the_environment_and_the_temporary_folder_in_turn() -> None:
    fork_server("shards.locks")  # the server ends with the thread that starts it
    before, folder = dict(os.environ), tempfile.tempdir

    def ask(number: int) -> None:
        fork_server("shards.locks")
        with temporaries_of_workers():
            time.sleep(1e-5)

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(400)))
    finally:
        sys.setswitchinterval(usual)
    assert dict(os.environ) == before and tempfile.tempdir == folder
