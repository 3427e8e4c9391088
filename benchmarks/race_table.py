"""The tables of benchmarks.race, in Markdown: who is how fast, and with which settings."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.curves import seconds_to
from benchmarks.race_score import Result, median_to, results_of
from benchmarks.race_settings import NAMES
from benchmarks.race_sides import SIDES, Side
from benchmarks.tables import table

MISSING = "not measured"


def tables(work: Path, goal: float, cap: float) -> str:
    """Return both tables of the results in `work`. A side without a result is not measured."""
    results = {name: results_of(work, name) for name in SIDES}
    return f"{speeds(results, goal, cap)}\n{settings(results)}"


def speeds(results: Mapping[str, Sequence[Result]], goal: float, cap: float) -> str:
    """Return a row for each side: time to the goal, best Dice, rate and versions."""
    head = ["side", f"to a positive Dice of {goal:g}", "best positive Dice", "mean Dice there", "films/s", "versions"]
    return table(head, [_speed(SIDES[name], results[name], goal, cap) for name in SIDES])


def _speed(side: Side, results: Sequence[Result], goal: float, cap: float) -> list[str]:
    if not results:
        return [side.title, *[MISSING] * 4, ""]
    bests = [result.best for result in results]
    best = max(bests, key=lambda point: point.positive_dice)
    extra = "".join(f"; {value:.3f} {name}" for name, value in results[0].extra.items())
    return [
        side.title,
        _time(results, goal, cap),
        f"{best.positive_dice:.3f} after {minutes(best.seconds)}{_seeds([p.positive_dice for p in bests])}{extra}",
        f"{best.dice:.3f}",
        f"{sum(result.films_per_second for result in results) / len(results):.1f}",
        ", ".join(f"{name} {version}" for name, version in results[0].versions.items()),
    ]


def _time(results: Sequence[Result], goal: float, cap: float) -> str:
    """Return the median time over the seeds, with each in brackets if there are several."""
    median = median_to(results, goal, cap)
    each = [seconds_to(result.curve, goal, cap) for result in results]
    singles = f" ({', '.join(map(minutes, each))})" if len(each) > 1 else ""
    if not math.isinf(median):
        return minutes(median) + singles
    longest = max(result.seconds for result in results)
    return f"not in {minutes(longest)}{singles}"


def _seeds(values: Sequence[float]) -> str:
    return f" ({', '.join(f'{value:.3f}' for value in values)})" if len(values) > 1 else ""


def minutes(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds / 60:.1f} min"


def settings(results: Mapping[str, Sequence[Result]]) -> str:
    """Return the settings of each side that was measured, and what a user of it would change."""
    sides = list(SIDES.values())
    rows = [[name, *(_setting(results[side.name], name) for side in sides)] for name in NAMES]
    rows.append(["a user would change", *(side.change for side in sides)])
    return table(["", *(side.title for side in sides)], rows)


def _setting(results: Sequence[Result], name: str) -> str:
    return results[0].settings[name] if results else MISSING
