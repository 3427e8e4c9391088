"""Child processes that never outlive their parent, and the memory and control groups of this process."""

import atexit
import multiprocessing
import os
import resource
import signal
from pathlib import Path

from pneumo_dist.ranks.environment import TORCHRUN
from shards.parent import STARTER, die_with_parent


def die_with_agent() -> None:
    """Have a rank die with torchrun's agent, or end now if the agent is dead. Other processes outlive their parents.

    torchrun starts ranks in their own sessions. If the agent were killed, they would keep writing into a run that the
    next attempt resumes.
    """
    if STARTER in os.environ or TORCHRUN in os.environ:
        die_with_parent()


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


def end_between_calls() -> None:
    """Have this worker end between two calls of Python when its parent dies, and not within one.

    torch creates shared memory and removes its name in one call. A worker that is killed between the two leaves it.
    """
    signal.signal(signal.SIGUSR2, lambda *_: os._exit(1))
    die_with_parent(number=signal.SIGUSR2)


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
