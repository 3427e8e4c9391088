"""Child processes that never outlive their parent, and the memory of this process."""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. Does nothing on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def end_workers() -> None:
    """Kill the remaining workers of this process. At exit Python sends SIGTERM, which they ignore, and waits."""
    for worker in multiprocessing.active_children():
        worker.kill()


def become_worker(_: int = 0) -> None:
    """Make this process a loader worker, or the server that forks them: it ends with the process that started it.

    It ignores signals, because the rank may still need a batch before it saves at the end of a step.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
