"""A row of `benchmarks.host_costs`: what the host does beside the GPU, before and after, and the target."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class HostCost:
    """A cost of the host.

    Attributes:
        part: Part of the training or of prediction, for example `step`.
        what: What the cost is for, with the network or the number of films.
        unit: Unit of the values, for example `ms`.
        before: Value at commit e2bae37, measured on one core of an AMD EPYC; as text, because some are ranges.
        after: Value measured now.
        target: Largest value that meets the target; None without a target.
    """

    part: str
    what: str
    unit: str
    before: str
    after: float
    target: float | None = None


def least_ms(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the least time of several calls in milliseconds, after one call that warms up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3
