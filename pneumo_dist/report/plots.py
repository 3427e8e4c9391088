"""Plots of thresholds and of the report, as the bytes of PNG files."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import numpy as np

from pneumo_dist.scoring.arrays import Flags
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.refine import SizeCurve
from pneumo_dist.thresholds.worth import PLATEAU, SizeRow, Surface
from shards.arrays import Floats

if TYPE_CHECKING:
    from pneumo_dist.report.calibration import Calibration

WIDTH = 9.0


def draw_curves(folds: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Draw the loss and Dice of one stage over optimizer steps. `folds` holds the validated epochs of each fold."""
    figure, (left, right) = _panels()
    for name, lines in folds.items():
        steps = [line["step"] for line in lines]
        (drawn,) = left.plot(steps, [line["loss"] for line in lines], ":", label=name)
        colour = drawn.get_color()
        left.plot(steps, [line["validation_loss"] for line in lines], color=colour, marker=".")
        # Older versions did not log the training Dice.
        right.plot(steps, [line.get("training_dice", np.nan) for line in lines], ":", color=colour)
        right.plot(steps, [line["score"] for line in lines], color=colour, marker=".", label=name)
    left.set(xlabel="optimizer step", ylabel="loss", title="Loss: validation solid, training dotted")
    right.set(xlabel="optimizer step", ylabel="Dice", ylim=(0, 1))
    right.set_title("Dice: validation mean over films solid,\ntraining over all pixels dotted")
    left.set_ylim(bottom=0)
    right.legend(fontsize="small")
    return _png(figure)


def draw_ranking(curves: Mapping[str, tuple[Flags, Floats]]) -> bytes:
    """Draw ROC and precision-recall curves. `curves` holds (positive, image score) pairs (n,) with both classes."""
    from sklearn.metrics import precision_recall_curve, roc_curve  # takes a second, and tune does not need it

    figure, (left, right) = _panels()
    for name, (positive, scores) in curves.items():
        false, true, _ = roc_curve(positive, scores)
        precision, recall, _ = precision_recall_curve(positive, scores)
        (drawn,) = left.plot(false, true, label=name)
        right.plot(recall, precision, drawstyle="steps-pre", label=name)
        right.axhline(positive.mean(), color=drawn.get_color(), linestyle=":", linewidth=1)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC", aspect="equal")
    right.set(xlabel="sensitivity (recall)", ylabel="precision", title="Precision-recall", aspect="equal")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    left.legend(fontsize="small", loc="lower right")
    return _png(figure)


def draw_sizes(rows: Sequence[SizeRow]) -> bytes:
    """Draw the Dice and the share of films called positive by size of the label."""
    figure = matplotlib.figure.Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(rows))
    axes.bar(positions, [row.dice for row in rows], color="#7fa7c9", label="mean Dice")
    axes.plot(positions, [row.sensitivity for row in rows], "o-", color="#333333", label="share called positive")
    axes.set_xticks(positions, [f"{row.smallest:,}\nto {row.largest:,}" for row in rows], fontsize="small")
    axes.set(xlabel="size of the label, label-grid pixels", ylim=(0, 1.05))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    return _png(figure)


def draw_reliability(calibration: "Calibration") -> bytes:
    """Draw the share of positives over the score, before and after calibration, and the number of films per bin."""
    figure, (left, right) = _panels()
    for side, (name, bins) in enumerate({"uncalibrated": calibration.before, "calibrated": calibration.after}.items()):
        (drawn,) = left.plot(bins.score, bins.share, "o-", label=name)
        right.bar(bins.score + (side - 0.5) * 0.03, bins.films, 0.03, color=drawn.get_color(), label=name)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="mean score of the bin", ylabel="share with a pneumothorax", title="Reliability", aspect="equal")
    left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    right.set(xlabel="mean score of the bin", ylabel="films", title="Films in each bin", xlim=(-0.05, 1.05))
    left.legend(fontsize="small", loc="upper left")
    return _png(figure)


def draw_surface(surface: Surface, triplet: Triplet) -> bytes:
    """Draw the mean Dice over every top and area at the best bottom, and outline the plateau around the best."""
    figure = matplotlib.figure.Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    low = float(np.quantile(surface.dice, 0.25))
    mesh = axes.pcolormesh(surface.areas, surface.tops, surface.dice, shading="nearest", cmap="viridis", vmin=low)
    figure.colorbar(mesh, label="mean Dice")
    best = float(surface.dice.max())
    if surface.dice.min() <= best - PLATEAU:
        axes.contour(surface.areas, surface.tops, surface.dice, [best - PLATEAU], colors="white", linewidths=1)
    axes.plot(triplet.area, triplet.top, "o", color="red", markeredgecolor="white")
    axes.set_xscale("symlog", linthresh=10)
    axes.set(xlabel="area, label-grid pixels", ylabel="top", title=f"Mean Dice at bottom {triplet.bottom:.3f}")
    return _png(figure)


def draw_curve(curve: SizeCurve, rule: Rule) -> bytes:
    """Draw the mean Dice over the size of the smallest component kept, at the fixed threshold of a rule."""
    figure = matplotlib.figure.Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.step(curve.sizes, curve.dice, where="post")
    size, threshold = rule.smallest_part, rule.triplet.bottom
    dice = float(curve.dice[curve.sizes == size][0])
    axes.plot(size, dice, "o", color="red", markeredgecolor="white", label=f"{size} px: {dice:.4f}")
    axes.set_xscale("symlog", linthresh=10)
    axes.set(
        xlabel="smallest component kept, label-grid pixels",
        ylabel="mean Dice",
        title=f"8-connected components with p > {threshold:g}",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def _panels() -> tuple[matplotlib.figure.Figure, Any]:
    figure = matplotlib.figure.Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def _png(figure: matplotlib.figure.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
