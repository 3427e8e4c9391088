"""How figures look in Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "not yet measured"


def percent(value: float | None) -> str:
    """Return a share as text; nothing for None."""
    return "" if value is None else f"{value:.1%}".replace("%", " %")


def number(value: float | None) -> str:
    """Return a rate as text."""
    return NOT_MEASURED if value is None else f"{value:.1f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def idle(row: Mapping[str, Any]) -> float | None:
    """Return the share of a step in which the GPU did nothing; None where no row says it.

    The profiler slows the host: where the busy time is known, it is set against a step without the profiler.
    """
    if "busy_s" in row:
        return max(0.0, 1 - float(row["busy_s"]) / float(row["step_s"]))
    return row.get("idle_share")
