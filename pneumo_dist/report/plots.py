"""Plots of thresholds and of the report, as the bytes of PNG files."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import matplotlib.lines
import numpy as np
from scipy import stats

from pneumo_dist.scoring.arrays import Flags
from pneumo_dist.scoring.histograms import level
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.refine import SizeCurve
from pneumo_dist.thresholds.worth import PLATEAU, SizeRow, Surface
from shards import palette
from shards.arrays import Floats
from shards.palette import css

if TYPE_CHECKING:
    from pneumo_dist.report.calibration import Calibration, Reliability

WIDTH = 9.0
# Of each line of a plot, so that lines differ without their colours.
_STYLES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)), "-")
_MARKED: dict[str, Any] = {
    "color": css(palette.MARK),
    "markeredgecolor": "white",
    "markeredgewidth": 2,
    "clip_on": False,
    "zorder": 9,
}


def draw_curves(folds: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Draw the loss and Dice of one stage over optimizer steps. `folds` holds the validated epochs of each fold.

    A classifier has the area under the ROC curve instead of Dice, and the F1 of films.
    """
    is_classifier = any("training_f1" in line for lines in folds.values() for line in lines)
    training = "training_f1" if is_classifier else "training_dice"
    figure, (left, right) = _panels()
    for number, (name, lines) in enumerate(folds.items()):
        steps, colour = [line["step"] for line in lines], _colour(number)
        left.plot(steps, [line["loss"] for line in lines], ":", color=colour)
        left.plot(steps, [line["validation_loss"] for line in lines], color=colour, marker=".")
        # Older versions did not log the training Dice.
        right.plot(steps, [line.get(training, np.nan) for line in lines], ":", color=colour)
        right.plot(steps, [line["score"] for line in lines], color=colour, marker=".", label=name)
    left.set(xlabel="optimizer step", ylabel="loss", title="Loss: validation solid, training dotted")
    right.set(xlabel="optimizer step", ylabel="ROC AUC, F1" if is_classifier else "Dice", ylim=(0, 1))
    right.set_title(
        "ROC AUC of the validation films solid,\nF1 of the training films dotted"
        if is_classifier
        else "Dice: validation mean over films solid,\ntraining over all pixels dotted"
    )
    left.set_ylim(bottom=0)
    _legend_below(figure, right)
    return _png(figure)


@dataclass(frozen=True)
class Ranking:
    """Films ranked by their image score: flags and scores (n,) with both classes, and the point of the rule in use."""

    positive: Flags
    scores: Floats
    sensitivity: float
    specificity: float
    ppv: float


def draw_ranking(curves: Mapping[str, Ranking]) -> bytes:
    """Draw ROC and precision-recall curves of some sets of films, each with the operating point of the rule in use."""
    from sklearn.metrics import precision_recall_curve, roc_curve  # takes a second, and tune does not need it

    figure, (left, right) = _panels(4.2)
    for number, (name, films) in enumerate(curves.items()):
        look: dict[str, Any] = {"color": _colour(number), "linestyle": _STYLES[number % len(_STYLES)]}
        false, true, _ = roc_curve(films.positive, films.scores)
        precision, recall, _ = precision_recall_curve(films.positive, films.scores)
        left.plot(false, true, label=name, **look)
        right.plot(recall, precision, drawstyle="steps-pre", **look)
        right.axhline(films.positive.mean(), color=look["color"], linestyle=":", linewidth=1)
        point = {**_MARKED, "color": look["color"], "markeredgecolor": "black", "markersize": 10, "linestyle": "none"}
        text = f"{name}: rule in use"
        left.plot(1 - films.specificity, films.sensitivity, marker="os^"[number % 3], label=text, **point)
        right.plot(films.sensitivity, films.ppv, marker="os^"[number % 3], **point)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC", aspect="equal")
    right.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)", title="Precision-recall", aspect="equal")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    _legend_below(figure, left)
    return _png(figure)


def draw_sizes(rows: Sequence[SizeRow]) -> bytes:
    """Draw the Dice and the share of films called positive by size of the label."""
    figure = matplotlib.figure.Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(rows))
    axes.bar(positions, [row.dice for row in rows], color=css(palette.SKY), label="mean Dice")
    called = [row.sensitivity for row in rows]
    axes.plot(positions, called, "o-", color="black", label="share called positive", clip_on=False)
    axes.set_xticks(positions, [f"{row.smallest:,}\nto {row.largest:,}" for row in rows], fontsize="small")
    axes.set(xlabel="size of the label, label-grid pixels", ylim=(0, 1.05))
    axes.grid(axis="y", alpha=0.3)
    _legend_below(figure, axes)
    return _png(figure)


def draw_reliability(calibration: "Calibration") -> bytes:
    """Draw the share of positives over the score, before and after calibration, with 95 % intervals and films per bin.

    The intervals are those of E. B. Wilson, 1927, for a share of independent films.
    """
    from pneumo_dist.report.calibration import BINS  # takes a second, and tune does not need it

    figure, (left, right) = _panels(4.2)
    for side, (name, bins) in enumerate({"uncalibrated": calibration.before, "calibrated": calibration.after}.items()):
        look: dict[str, Any] = {"color": _colour(side), "label": name}
        errors = np.abs(wilson_intervals(bins) - bins.share)
        style = {"marker": "os"[side], "linestyle": _STYLES[side], "capsize": 3, "elinewidth": 1}
        left.errorbar(bins.score, bins.share, errors, **look, **style)
        centre = (np.minimum((bins.score * BINS).astype(np.int64), BINS - 1) + 0.5) / BINS
        drawn = right.bar(centre + (side - 0.5) * 0.04, bins.films, 0.04, hatch=("", "////")[side], **look)
        right.bar_label(drawn, fontsize="xx-small", rotation=90, padding=2)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="mean score of the bin", ylabel="share with a pneumothorax", title="Reliability", aspect="equal")
    left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    right.set(xlabel="score", ylabel="films", title="Films in each bin", xlim=(-0.05, 1.05))
    right.margins(y=0.18)
    _legend_below(figure, left)
    return _png(figure)


def wilson_intervals(bins: "Reliability") -> Floats:
    """Return the 95 % intervals of the shares of positives, float64 (2, k)."""
    hits = np.rint(bins.share * bins.films).astype(np.int64).tolist()
    found = [
        stats.binomtest(count, films).proportion_ci(method="wilson")
        for count, films in zip(hits, bins.films.tolist(), strict=True)
    ]
    return np.array([[each.low for each in found], [each.high for each in found]])


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
    axes.set_xscale("symlog", linthresh=10)
    axes.set(xlabel="area, label-grid pixels", ylabel="top", title=f"Mean Dice at bottom {triplet.bottom:.3f}")
    axes.plot(triplet.area, triplet.top, "o", markersize=11, **_MARKED)
    ring = matplotlib.lines.Line2D([], [], linestyle="none", marker="o", markersize=11, **_MARKED)
    handles = {f"top {triplet.top:.3f}, area {triplet.area:,} px: {_at(surface, triplet):.4f}": ring}
    if surface.dice.min() <= best - PLATEAU:
        handles[f"less than {PLATEAU:g} below the best"] = matplotlib.lines.Line2D([], [], color="white", linewidth=2)
    legend = figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, fontsize="small")
    legend.get_frame().set(facecolor="#b9c4cd", alpha=1)
    return _png(figure)


def _at(surface: Surface, triplet: Triplet) -> float:
    """Return the mean Dice at a triplet's top and at the area that is nearest to the triplet's."""
    return float(surface.dice[level(triplet.top), np.abs(surface.areas - triplet.area).argmin()])


def draw_curve(curve: SizeCurve, rule: Rule) -> bytes:
    """Draw the mean Dice over the size of the smallest component kept, at the fixed threshold of a rule."""
    figure = matplotlib.figure.Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.step(curve.sizes, curve.dice, where="post", color=css(palette.BLUE))
    size, threshold = rule.smallest_part, rule.triplet.bottom
    dice = float(curve.dice[curve.sizes == size][0])
    axes.plot(size, dice, "o", markersize=11, label=f"{size:,} px: {dice:.4f}", **_MARKED)
    axes.set_xscale("symlog", linthresh=10)
    axes.set(
        xlabel="smallest component kept, label-grid pixels",
        ylabel="mean Dice",
        title=f"8-connected components with p > {threshold:g}",
    )
    axes.grid(alpha=0.3)
    _legend_below(figure, axes)
    return _png(figure)


def _colour(number: int) -> str:
    return css(palette.LINES[number % len(palette.LINES)])


def _legend_below(figure: matplotlib.figure.Figure, axes: Any) -> None:
    """Put the legend of some axes below the plots, where it covers no data."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")


def _panels(height: float = 3.9) -> tuple[matplotlib.figure.Figure, Any]:
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def _png(figure: matplotlib.figure.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
