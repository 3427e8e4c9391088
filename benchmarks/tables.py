"""How figures look in Markdown tables."""

from collections.abc import Sequence

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
