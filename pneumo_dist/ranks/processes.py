"""Processes: none outlives the one it works for, and how much memory this one took."""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (on Linux; elsewhere nothing is done)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)


def end_workers() -> None:
    """Kill what is left of this process's workers: at exit Python would send them the SIGTERM that they ignore, and
    wait for ever."""
    for worker in multiprocessing.active_children():
        worker.kill()


def become_worker(_: int = 0) -> None:
    """Make this process a loader's worker, or the server of these: it ends with the process that started it.

    Signals are left to the rank, which may still want a batch to save at a step's boundary.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
