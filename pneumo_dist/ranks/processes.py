"""Child processes that never outlive their parent, and the memory and control groups of this process."""

import atexit
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. Does nothing on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def fork_server(module: str) -> Any:
    """Start this process's server of workers, unless it runs, and return the context whose workers it forks.

    The rank has threads; a worker forked from it could inherit a lock held by one of them. The server imports `module`
    once for all workers. This returns before the server is ready. Call it from the main thread: the server ends with
    the thread that started it.
    """
    # After an error, the resource tracker removes this process's semaphores. Its warning would be the last line.
    ignored = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), ignored]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    forkserver.ensure_running()
    return context


def kill_workers_at_exit() -> None:
    """Register `end_workers` to run before multiprocessing's own handler, as handlers run last in, first out.

    Call it after the import of multiprocessing's children: torch's import registers that handler too.
    """
    atexit.unregister(end_workers)
    atexit.register(end_workers)


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


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process and its children may still take, by the host and by its control groups."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    rooms = [_room(folder) for folder in control_groups(root)]
    return min([free, *(room for room in rooms if room is not None)])


def _room(folder: Path) -> int | None:
    """Return the bytes that a control group may still take; None without a limit. Cached files do not count."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())["file"]
        return None if limit == "max" else max(int(limit) - int(used) + int(cached), 0)
    except (OSError, KeyError, ValueError):
        return None


def control_groups(root: Path = Path("/")) -> list[Path]:
    """Return the folders of this process's control groups (version 2), from its own up; none without any."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if group is None:
        return []
    top = root / "sys/fs/cgroup"
    return [folder for folder in (top / group, *(top / group).parents) if folder == top or top in folder.parents]
