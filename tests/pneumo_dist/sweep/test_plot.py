"""The plot of a sweep: what is drawn, read from the axes, and a PNG for any set of trials."""

from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from images import decode

from pneumo_dist.sweep.plot import draw_sweep
from pneumo_dist.sweep.space import Parameter
from pneumo_dist.sweep.table import Row

PARAMETERS = {
    "optim.lr": Parameter(log=(1e-4, 1e-2)),
    "loss": Parameter(choices=({"bce": 1}, "$x$")),
    "epochs": Parameter(whole=(1, 3)),
    "share": Parameter(range=(0, 1)),
}


def row(number: int, state: str, score: float | None, lr: float, loss: str = "{bce: 1}") -> Row:
    return Row(number, f"s-{number:03d}", state, score, 1, {"optim.lr": lr, "loss": loss, "epochs": 2, "share": 0.5})


ROWS = [
    row(0, "done", 0.5, 1e-3),
    row(1, "pruned", 0.9, 1e-4),
    row(2, "unfinished", 0.95, 5e-4),
    row(3, "done", 0.75, 1e-2, "$x$"),
    row(4, "failed", None, 1e-2),
    row(5, "done", 0.25, 2e-3),
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that are drawn."""
    found: list[matplotlib.figure.Figure] = []
    draw = matplotlib.figure.Figure.savefig

    def keep(figure: matplotlib.figure.Figure, *given: Any, **options: Any) -> None:
        found.append(figure)
        draw(figure, *given, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return found


def drawn(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each line with a label."""
    lines = {line.get_label(): line for line in axes.get_lines()}
    return {label: [(float(x), float(y)) for x, y in line.get_xydata()] for label, line in lines.items()}


def test_each_key_and_the_best_so_far_are_drawn(figures: list[matplotlib.figure.Figure]) -> None:
    image = decode(draw_sweep(ROWS, PARAMETERS))
    (figure,) = figures
    trials, rate, loss, epochs, share, *unused = figure.axes
    assert drawn(trials) == {
        "done": [(0, 0.5), (3, 0.75), (5, 0.25)],
        "pruned": [(1, 0.9)],
        "best": [(3, 0.75)],
        "best so far": [(0, 0.5), (3, 0.75), (5, 0.75)],
    }
    assert drawn(rate) == {
        "done": [(1e-3, 0.5), (1e-2, 0.75), (2e-3, 0.25)],
        "pruned": [(1e-4, 0.9)],
        "best": [(1e-2, 0.75)],
    }
    assert rate.get_xscale() == "log" and rate.get_xlabel() == "optim.lr"
    assert drawn(loss)["done"] == [(0, 0.5), (1, 0.75), (0, 0.25)]
    assert [label.get_text() for label in loss.get_xticklabels()] == ["{bce: 1}", r"\$x\$"]
    assert drawn(epochs)["pruned"] == [(2, 0.9)] and drawn(share)["best"] == [(0.5, 0.75)]
    assert [each.get_visible() for each in unused] == [False]
    assert image.ndim in (2, 3) and len(np.unique(image)) > 10


@pytest.mark.parametrize("rows", [[], ROWS[2:3], ROWS[1:2]])
def test_a_sweep_without_a_result_is_drawn_too(rows: list[Row]) -> None:
    assert draw_sweep(rows, {"epochs": PARAMETERS["epochs"]}).startswith(b"\x89PNG")
