"""The CPUs of this process, and the threads that a rank's loader takes of them. Imports no torch."""

import os
from collections.abc import Mapping
from pathlib import Path

from pneumo_dist.ranks.environment import launched_rank
from pneumo_dist.ranks.processes import control_groups

# More loader threads than this per rank feed no GPU faster.
_MOST_THREADS = 8


def loader_threads(threads: int | None, allowed: float, ranks: int) -> int:
    """Return `data.threads`, or by default the CPUs of a rank, of which one is left to compute."""
    return threads or min(_MOST_THREADS, max(1, int(allowed / ranks) - 1))


def ranks_here(env: Mapping[str, str]) -> int:
    """Return the number of ranks that share this node's CPUs, 1 if unknown."""
    launched = launched_rank(env)
    return (launched.local_world if launched else 0) or 1


def allowed_cpus(root: Path = Path("/")) -> float:
    """Return the number of CPUs that this process may use, by its CPU mask and the quota of its container."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(bound), cpu_quota(root) or float(bound))


def cpu_quota(root: Path) -> float | None:
    """Return the smallest quota of this process's control groups (version 2), in CPUs; None without a quota."""
    quotas = [_quota(folder / "cpu.max") for folder in control_groups(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
