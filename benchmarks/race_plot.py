"""The curves of benchmarks.race as a picture."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
from matplotlib.ticker import FuncFormatter

from benchmarks.race_score import Result
from benchmarks.race_sides import SIDES
from shards.files import atomic_write
from shards.palette import BLUE, GREEN, ORANGE, SKY, VERMILION, css

# A colour and a mark for each side, so that they differ without colour too.
_STYLES = ((BLUE, "o"), (SKY, "v"), (ORANGE, "s"), (GREEN, "^"), (VERMILION, "D"))
STYLES = dict(zip(SIDES, _STYLES, strict=True))


def plot(results: Mapping[str, Sequence[Result]], goal: float, path: Path) -> None:
    """Draw the positive Dice of every side and seed over minutes of training, and the goal."""
    figure = matplotlib.figure.Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, side in SIDES.items():
        colour, mark = STYLES[name]
        for number, result in enumerate(results[name]):
            times, dice = zip(*((point.seconds / 60, point.positive_dice) for point in result.curve), strict=True)
            label = side.title if number == 0 else None
            # About a dozen marks on a line; a curve of 200 epochs would be a band of them.
            every = max(1, len(times) // 12)
            axes.plot(times, dice, color=css(colour), marker=mark, markersize=4, markevery=every, lw=1.4, label=label)
    axes.axhline(goal, color="0.4", lw=1, ls="--", label=f"goal {goal:g}")
    axes.set(xscale="log", xlabel="minutes of training", ylabel="Dice of the positive validation films", ylim=(0, 1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="0.9")
    axes.legend(loc="upper left", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write(path, buffer.getvalue())
