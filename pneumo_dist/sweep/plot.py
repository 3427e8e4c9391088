"""The plot of a sweep: each key against the score, and the best score so far."""

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.ticker import LogLocator

from pneumo_dist.sweep.space import Parameter
from pneumo_dist.sweep.table import DONE, PRUNED, Row
from shards import palette
from shards.console import printable
from shards.palette import css

_COLUMNS, _WIDTH, _HEIGHT = 3, 3.4, 3.0
_LONGEST_NAME = 24
# Filled marks are trials that are done.
_LOOKS: dict[str, dict[str, Any]] = {
    DONE: {"marker": "o", "color": css(palette.BLUE), "linestyle": "none", "markersize": 5},
    PRUNED: {"marker": "x", "color": css(palette.ORANGE), "linestyle": "none", "markersize": 6},
}


def draw_sweep(rows: Sequence[Row], parameters: dict[str, Parameter]) -> bytes:
    """Return a PNG with one panel for each key, its values against the score, and one with the best score so far.

    Trials without a score, and unfinished ones, are left out.
    """
    panels = 1 + len(parameters)
    columns = min(panels, _COLUMNS)
    lines = math.ceil(panels / columns)
    figure = matplotlib.figure.Figure(figsize=(_WIDTH * columns, _HEIGHT * lines + 0.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, sharey=True)).ravel()
    scored = [row for row in rows if row.state in _LOOKS and row.score is not None]
    best = max(
        (row for row in scored if row.state == DONE), key=lambda row: (row.score or 0, -row.number), default=None
    )
    for panel, (key, parameter) in zip(axes[1:panels], parameters.items(), strict=True):
        position = _positions(panel, parameter)
        _marks(panel, scored, best, [position(row.parameters[key]) for row in scored])
        panel.set_xlabel(printable(key))
    _marks(axes[0], scored, best, [row.number for row in scored])
    done = [row for row in scored if row.state == DONE]
    steps = itertools.accumulate((row.score or 0.0 for row in done), max)
    axes[0].step(
        [row.number for row in done], list(steps), where="post", color="black", linewidth=1, label="best so far"
    )
    axes[0].set_xlabel("trial")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    for number, panel in enumerate(axes):
        panel.set_visible(number < panels)
        panel.grid(alpha=0.3)
        if number % columns == 0:
            panel.set_ylabel("score")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _positions(panel: Any, parameter: Parameter) -> Any:
    """Scale the x axis for a key's values and return the function from a value to its place."""
    if parameter.choices is not None:
        texts = list(parameter.texts)
        panel.set_xticks(range(len(texts)), [_label(text) for text in texts], rotation=30, ha="right", fontsize="small")
        panel.set_xlim(-0.5, len(texts) - 0.5)
        return texts.index
    low, high = parameter.ends
    if parameter.log is None:
        margin = 0.05 * (high - low)
        panel.set_xlim(low - margin, high + margin)
        panel.xaxis.get_major_locator().set_params(integer=parameter.whole is not None, nbins=6)
        return float
    panel.set_xscale("log")
    panel.set_xlim(low * (low / high) ** 0.05, high * (high / low) ** 0.05)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")
    return float


def _label(text: str) -> str:
    # Dollars would begin a formula of matplotlib.
    shown = printable(text).replace("$", r"\$")
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"


def _marks(panel: Any, rows: Sequence[Row], best: Row | None, positions: Sequence[float]) -> None:
    for state, look in _LOOKS.items():
        places = [(x, row.score) for x, row in zip(positions, rows, strict=True) if row.state == state]
        if places:
            panel.plot(*zip(*places, strict=True), label=state, **look)
    for x, row in zip(positions, rows, strict=True):
        if row is best:
            ring = {"markerfacecolor": "none", "markeredgecolor": css(palette.MARK), "markeredgewidth": 2}
            panel.plot(x, row.score, "o", markersize=11, label="best", **ring)
