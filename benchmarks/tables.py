"""Format figures as Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any


def percent(value: float | None) -> str:
    """Return a share as text; an empty string for None."""
    return "" if value is None else f"{value:.1%}".replace("%", " %")


def number(value: float | None) -> str:
    """Return a rate as text; an empty string for None."""
    return "" if value is None else f"{value:.1f}"


def times(value: float | None) -> str:
    """Return a ratio as text; an empty string for None."""
    return "" if value is None else f"{value:.2f} x"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def idle(row: Mapping[str, Any]) -> float | None:
    """Return the share of a step in which the GPU is idle, None if the row lacks it.

    The profiler slows the host, so the busy time, if known, is compared with a step without the profiler.
    """
    if "busy_s" in row:
        return max(0.0, 1 - float(row["busy_s"]) / float(row["step_s"]))
    return row.get("idle_share")
