"""Thresholds from out-of-fold predictions: the exact best triplet on the label grid, and what it is worth."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import numpy.typing as npt

from pneumo_dist.distributed import Ranks
from pneumo_dist.inference.evaluate import (
    PLATEAU,
    SizeRow,
    bootstrap_interval,
    by_size,
    cross_tuned,
    given_up,
    is_shown,
    plateau,
    surface,
)
from pneumo_dist.inference.objective import Objective
from pneumo_dist.inference.postprocess import label_map
from pneumo_dist.inference.store import Predictions
from pneumo_dist.metrics import Histograms, Score, Triplet, film_dice, film_histograms, score
from pneumo_dist.validation import gather_histograms
from shards import rle
from shards.errors import InputError
from shards.files import atomic_write

THRESHOLDS, SURFACE = "thresholds.json", "thresholds.png"


@dataclass(frozen=True)
class Estimate:
    """A mean over films with its 95 % interval by patient; the ends are nan where there is one patient alone."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Tuned:
    """The best triplet and its scores over the films it was tuned on, and per fold.

    `dice` is the mean Dice of these films. `unseen` is it under thresholds that were tuned on the other folds, None
    for films of one fold. `called` is the share of films whose masks are not empty, `given_up` the positive films that
    only `area` makes empty, `plateau` how far each threshold can move alone, `by_size` the positive films in parts of
    equal number. `patients` counts the groups that intervals draw from: as many as films where patients are unknown.
    """

    objective: Objective
    triplet: Triplet
    score: Score
    folds: dict[int, Score]
    dice: Estimate
    unseen: Estimate | None
    called: float
    given_up: int
    plateau: dict[str, tuple[float, float]]
    by_size: list[SizeRow]
    patients: int


def prediction_histograms(
    predictions: Predictions, ranks: Ranks, on_film: Callable[[], None] | None = None
) -> Histograms:
    """Return int64 (n, 2, 256) of labelled predictions in table order, the work dealt to the ranks.

    Raises InputError where a film has no label.
    """
    found = []
    for index in range(ranks.rank, len(predictions), ranks.world):
        text, grid = predictions.rows[index]["rle"], predictions.grid(index)
        if text is None:
            raise InputError(
                f"{predictions.folder}: {predictions.rows[index]['key']} has no label to tune on; use --split oof"
            )
        truth = rle.decode(text, grid.height, grid.width)
        histograms = film_histograms(label_map(predictions.p8(index), grid), truth)
        found.append(np.concatenate([[index], histograms.reshape(-1)]))
        if on_film:
            on_film()
    return gather_histograms(found, ranks)


def tune(predictions: Predictions, histograms: Histograms, objective: Objective | None = None) -> Tuned:
    """Return the exact best triplet over every top and bottom level and every area, and what it is worth."""
    chosen = objective or Objective()
    triplet = chosen.search(histograms)
    folds = np.array([-1 if row["fold"] is None else row["fold"] for row in predictions.rows])
    groups = np.array([str(row["group"]) for row in predictions.rows])
    weights = chosen.film_weights(histograms[:, 1].sum(-1) > 0)
    unseen = cross_tuned(histograms, folds, chosen)
    return Tuned(
        objective=chosen,
        triplet=triplet,
        score=score(histograms, triplet),
        folds={int(fold): score(histograms[folds == fold], triplet) for fold in np.unique(folds)},
        dice=_estimate(film_dice(histograms, triplet), groups),
        unseen=None if unseen is None else _estimate(unseen, groups),
        called=float(is_shown(histograms, triplet).mean()),
        given_up=given_up(histograms, triplet),
        plateau=plateau(histograms, triplet, weights),
        by_size=by_size(histograms, triplet),
        patients=len(np.unique(groups)),
    )


def _estimate(values: npt.NDArray[np.float64], groups: npt.NDArray[np.str_]) -> Estimate:
    return Estimate(float(values.mean()), *bootstrap_interval(values, groups))


def write_thresholds(path: Path, tuned: Tuned, predictions: Predictions) -> None:
    """Write thresholds.json with the digest of the predictions that it was tuned on."""
    content = {
        "objective": str(tuned.objective),
        "triplet": asdict(tuned.triplet),
        "score": _plain(tuned.score),
        "folds": {str(fold): _plain(s) for fold, s in tuned.folds.items()},
        "dice": _plain(tuned.dice),
        "dice_tuned_on_other_folds": None if tuned.unseen is None else _plain(tuned.unseen),
        "called_positive": tuned.called,
        "positives_given_up_by_area": tuned.given_up,
        "plateau": tuned.plateau,
        "by_size": [asdict(row) for row in tuned.by_size],
        "patients": tuned.patients,
        "experiment": predictions.manifest["experiment"],
        "predictions_sha256": predictions.digest,
    }
    atomic_write(path, json.dumps(content, indent=1) + "\n")


def _plain(values: Score | Estimate) -> dict[str, float | int | None]:
    """JSON has no nan: a mean over no films is null."""
    return {name: None if value != value else value for name, value in asdict(values).items()}


def summary_lines(tuned: Tuned) -> list[str]:
    """Return what a person wants to read of it."""
    triplet, result = tuned.triplet, tuned.score
    # Rounded up, so that the printed numbers, typed after --triplet, mean the same levels.
    top, bottom = (math.ceil(value * 1e4) / 1e4 for value in (triplet.top, triplet.bottom))
    lines = [
        f"best triplet for {tuned.objective}: top {top:.4f}, area {triplet.area} px, bottom {bottom:.4f}",
        f"out-of-fold mean Dice {result.dice:.4f} over {result.films} films (always empty {result.always_empty:.4f}), "
        f"Dice on {result.positives} positive films {result.positive_dice:.4f}",
        f"95 % interval {tuned.dice.low:.4f} to {tuned.dice.high:.4f}, too good as these films chose the thresholds",
    ]
    if tuned.unseen is not None:
        low, high = tuned.unseen.low, tuned.unseen.high
        lines.append(f"with thresholds of the other folds {tuned.unseen.mean:.4f}, 95 % {low:.4f} to {high:.4f}")
    drawn = "patients" if tuned.patients < result.films else "films, each a patient of its own or of none known"
    lines.append(f"intervals draw from {tuned.patients} {drawn}")
    lines.append(f"called positive: {tuned.called:.1%}; area gives up {tuned.given_up} positive films")
    return lines + [
        f"masks of {row.smallest} to {row.largest} px: {row.films} films, sensitivity {row.sensitivity:.2f}, "
        f"Dice {row.dice:.2f}"
        for row in tuned.by_size
    ]


def draw_surface(histograms: Histograms, tuned: Tuned) -> bytes:
    """Return a PNG of the mean Dice over every top and area at the best bottom, its plateau outlined."""
    weights = tuned.objective.film_weights(histograms[:, 1].sum(-1) > 0)
    found = surface(histograms, tuned.triplet, weights)
    figure = matplotlib.figure.Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    low = float(np.quantile(found.dice, 0.25))
    mesh = axes.pcolormesh(found.areas, found.tops, found.dice, shading="nearest", cmap="viridis", vmin=low)
    figure.colorbar(mesh, label="mean Dice")
    axes.contour(found.areas, found.tops, found.dice, [found.dice.max() - PLATEAU], colors="white", linewidths=1)
    axes.plot(tuned.triplet.area, tuned.triplet.top, "o", color="red", markeredgecolor="white")
    axes.set_xscale("symlog", linthresh=10)
    axes.set(
        xlabel="area, label-grid pixels",
        ylabel="top",
        title=f"Mean Dice at bottom {tuned.triplet.bottom:.3f}; within {PLATEAU} of the best inside the white line",
    )
    axes.title.set_fontsize("medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def read_thresholds(path: Path) -> tuple[Triplet, float]:
    """Return the triplet of a thresholds.json and the share of out-of-fold films that it calls positive.

    Raises InputError where it is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        triplet, called = Triplet(**content["triplet"]), float(content["called_positive"])
        if not (0 <= triplet.top <= 1 and 0 <= triplet.bottom <= 1 and triplet.area >= 0):
            raise ValueError
        return triplet, called
    except FileNotFoundError:
        raise InputError(
            f"{path}: no thresholds; run 'python -m pneumo_dist tune' first, or give --triplet TOP AREA BOTTOM"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a thresholds file; run 'python -m pneumo_dist tune' again") from None
