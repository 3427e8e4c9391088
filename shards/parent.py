"""Processes that never outlive the one that started them. Imports nothing heavy, because a child calls this first."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Names the process that starts another one. The child removes it, so that its own children never see it.
STARTER = "PNEUMO_DIST_STARTER"
_PR_SET_PDEATHSIG = 1


def die_with_parent(starter: int | None = None, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel kill this process when its parent dies, and end it now if its parent is already dead.

    Call it before any heavy import. Does nothing on systems other than Linux.

    Args:
        starter: The process that is expected to live: the parent, or its parent if a script lies between. Read from
            the environment if the starter has announced itself there.
        number: The signal that this process then gets.
    """
    announced = os.environ.pop(STARTER, "")
    if not sys.platform.startswith("linux"):
        return
    starter = starter or (int(announced) if announced.isdecimal() else None)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    # The parent may have died before the call, or before this process looked for it.
    if os.getppid() != parent or (starter not in (None, parent) and not _is_running(starter)):
        os.kill(os.getpid(), number)


def _is_running(pid: int | None) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@contextmanager
def announced() -> Iterator[None]:
    """Tell the processes that are started meanwhile who started them; `die_with_parent` reads it."""
    os.environ[STARTER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(STARTER, None)


def bind_forks() -> None:
    """Have every process that is forked from this one die with it, from its first instruction on."""
    parents: list[int] = []

    def before() -> None:
        parents[:] = [os.getpid()]

    os.register_at_fork(before=before, after_in_child=lambda: die_with_parent(parents[0]))
