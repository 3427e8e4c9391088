"""Profile GPU kernels over a few steps: the GPU's idle share, and the kernels that take the most time."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile

ON_GPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
SHOWN = 10
NAME_LENGTH = 100


@dataclass(frozen=True)
class Interval:
    """A kernel, copy or fill on the GPU: its name, and its start and end in seconds."""

    name: str
    start: float
    end: float


def kernel_facts(take: Callable[[], object], steps: int) -> dict[str, Any]:
    """Profile some steps; return the idle share, busy seconds and kernels per step, and the longest kernels."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            take()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        kernels = intervals(json.loads(path.read_text())["traceEvents"])
    if not kernels:
        return {}
    shares = {name[:NAME_LENGTH]: share for name, share in shares_by_name(kernels)[:SHOWN]}
    return {
        "idle_share": idle_share(kernels),
        "busy_s": busy_seconds(kernels) / steps,
        "kernels_per_step": len(kernels) / steps,
        "kernel_shares": shares,
    }


def intervals(events: Iterable[dict[str, Any]]) -> list[Interval]:
    """Return the intervals on the GPU among a trace's events, whose times are in microseconds."""
    return [
        Interval(event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in events
        if event.get("ph") == "X" and event.get("cat") in ON_GPU
    ]


def idle_share(kernels: Sequence[Interval]) -> float:
    """Return the share of time, from the first start to the last end, in which no stream is busy."""
    whole = max(each.end for each in kernels) - min(each.start for each in kernels)
    return 1 - busy_seconds(kernels) / whole if whole else 0.0


def busy_seconds(kernels: Sequence[Interval]) -> float:
    """Return the length of the union of the intervals."""
    ordered = sorted(kernels, key=lambda each: each.start)
    busy, end = 0.0, ordered[0].start
    for each in ordered:
        busy += max(0.0, each.end - max(each.start, end))
        end = max(end, each.end)
    return busy


def shares_by_name(kernels: Sequence[Interval]) -> list[tuple[str, float]]:
    """Return each name's share of the summed time of all kernels, largest first; overlapping kernels all count."""
    seconds: dict[str, float] = defaultdict(float)
    for each in kernels:
        seconds[each.name] += each.end - each.start
    whole = sum(seconds.values())
    return sorted(((name, value / whole) for name, value in seconds.items()), key=lambda item: -item[1])
