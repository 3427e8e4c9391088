"""What the GPU did in a few steps: the share of time without a kernel, and the kernels that take the most."""

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
    """Something that ran on the GPU: when it began and ended, seconds, and its name."""

    name: str
    start: float
    end: float


def kernel_facts(take: Callable[[], object], steps: int) -> dict[str, Any]:
    """Take some steps under the profiler; return idle share, busy time and kernels a step, and the largest kernels."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            take()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        ran = intervals(json.loads(path.read_text())["traceEvents"])
    if not ran:
        return {}
    shares = {name[:NAME_LENGTH]: share for name, share in shares_by_name(ran)[:SHOWN]}
    return {
        "idle_share": idle_share(ran),
        "busy_s": busy_seconds(ran) / steps,
        "kernels_per_step": len(ran) / steps,
        "kernel_shares": shares,
    }


def intervals(events: Iterable[dict[str, Any]]) -> list[Interval]:
    """Return what ran on the GPU of a trace's events, whose times are in microseconds."""
    return [
        Interval(event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in events
        if event.get("ph") == "X" and event.get("cat") in ON_GPU
    ]


def idle_share(ran: Sequence[Interval]) -> float:
    """Return the share of the time from the first to the last interval in which none ran, on any stream."""
    whole = max(each.end for each in ran) - min(each.start for each in ran)
    return 1 - busy_seconds(ran) / whole if whole else 0.0


def busy_seconds(ran: Sequence[Interval]) -> float:
    """Return the time in which any interval ran."""
    ordered = sorted(ran, key=lambda each: each.start)
    busy, end = 0.0, ordered[0].start
    for each in ordered:
        busy += max(0.0, each.end - max(each.start, end))
        end = max(end, each.end)
    return busy


def shares_by_name(ran: Sequence[Interval]) -> list[tuple[str, float]]:
    """Return each name's share of all kernels' time, largest first; kernels that overlap count each."""
    taken: dict[str, float] = defaultdict(float)
    for each in ran:
        taken[each.name] += each.end - each.start
    whole = sum(taken.values())
    return sorted(((name, seconds / whole) for name, seconds in taken.items()), key=lambda item: -item[1])
