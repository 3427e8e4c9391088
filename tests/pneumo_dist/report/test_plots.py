"""Plots are PNG files that show their data."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from images import decode
from report_runs import ALONE, store

from pneumo_dist.report.calibration import Calibration, reliability
from pneumo_dist.report.plots import draw_curve, draw_curves, draw_ranking, draw_reliability, draw_sizes, draw_surface
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.refine import SizeCurve
from pneumo_dist.thresholds.tune import prediction_histograms, tune
from pneumo_dist.thresholds.worth import SizeRow, surface
from shards.dataset.table import Shards


def decoded(png: bytes) -> npt.NDArray[np.uint8]:
    picture = decode(png, cv2.IMREAD_COLOR)
    assert picture.std() > 5, "the plot is empty"
    return picture


def red_dot(png: bytes) -> tuple[float, float]:
    """Return the centre (x, y) of the red pixels of a plot, as shares of its width and height."""
    blue, green, red = np.moveaxis(decoded(png).astype(int), -1, 0)
    rows, columns = np.nonzero((red > 230) & (green < 40) & (blue < 40))
    return float(columns.mean()) / red.shape[1], float(rows.mean()) / red.shape[0]


def test_surface_marks_the_triplet(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    histograms = prediction_histograms(predictions, ALONE)
    triplet = tune(predictions, histograms).thresholds.triplet
    means = surface(histograms, triplet, np.ones(len(histograms)))
    left, low = red_dot(draw_surface(means, replace(triplet, area=10, top=0.1)))
    right, high = red_dot(draw_surface(means, replace(triplet, area=1000, top=0.9)))
    assert left < right and high < low


def test_curve_marks_the_size_of_the_rule() -> None:
    curve = SizeCurve(np.array([0, 10, 100, 1000]), np.array([0.2, 0.3, 0.6, 0.1]))
    small, large = (
        red_dot(draw_curve(curve, Rule(Triplet(0.5, 0, 0.5), smallest_part=size)))[0] for size in (10, 1000)
    )
    assert small < large
    with pytest.raises(IndexError):
        draw_curve(curve, Rule(Triplet(0.5, 0, 0.5), smallest_part=11))


def test_every_other_plot_shows_its_data() -> None:
    line = {"step": 10, "loss": 1.0, "validation_loss": 0.8, "score": 0.4}
    old, new = ({"fold0": [line, {**line, **more, "step": 20}]} for more in ({}, {"training_dice": 0.3}))
    assert draw_curves(old) == draw_curves(old) and decoded(draw_curves(old)).shape == decoded(draw_curves(new)).shape
    positive, scores = np.array([True, False, True, False]), np.array([0.9, 0.1, 0.4, 0.5])
    perfect, chance = draw_ranking({"a": (positive, positive * 1.0)}), draw_ranking({"a": (positive, scores)})
    assert (decoded(perfect) != decoded(chance)).any()
    rows = [SizeRow(1, 10, 12, 0.5, 0.4), SizeRow(11, 90, 12, 0.9, 0.8)]
    assert (decoded(draw_sizes(rows)) != decoded(draw_sizes(rows[:1]))).any()
    bins = reliability(scores, positive), reliability(1 - scores, positive)
    one, other = Calibration(0.3, 0.2, *bins), Calibration(0.3, 0.2, *bins[::-1])
    assert (decoded(draw_reliability(one)) != decoded(draw_reliability(other))).any()
