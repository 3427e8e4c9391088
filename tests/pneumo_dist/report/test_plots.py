"""Plots are PNG files that show their data."""

import math
import statistics
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from images import decode
from report_runs import ALONE, store

from pneumo_dist.report.calibration import Calibration, reliability
from pneumo_dist.report.plots import (
    Ranking,
    draw_curve,
    draw_curves,
    draw_ranking,
    draw_reliability,
    draw_sizes,
    draw_surface,
    wilson_intervals,
)
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.refine import SizeCurve
from pneumo_dist.thresholds.tune import prediction_histograms, tune
from pneumo_dist.thresholds.worth import SizeRow, surface
from shards import palette
from shards.dataset.table import Shards


def decoded(png: bytes) -> npt.NDArray[np.uint8]:
    picture = decode(png, cv2.IMREAD_COLOR)
    assert picture.std() > 5, "the plot is empty"
    return picture


def dot(png: bytes) -> tuple[float, float]:
    """Return the centre (x, y) of the marked point of a plot, as shares of its width and height."""
    picture = decoded(png)
    near = np.abs(picture[..., ::-1].astype(int) - palette.MARK).max(-1) < 12
    near[round(0.88 * len(near)) :] = False  # the legend
    assert near.sum() > 120, "the point is cut off or hidden"
    rows, columns = np.nonzero(near)
    return float(columns.mean()) / near.shape[1], float(rows.mean()) / near.shape[0]


def test_surface_marks_the_triplet(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    histograms = prediction_histograms(predictions, ALONE)
    triplet = tune(predictions, histograms).thresholds.triplet
    means = surface(histograms, triplet, np.ones(len(histograms)))
    left, low = dot(draw_surface(means, replace(triplet, area=10, top=0.1)))
    right, high = dot(draw_surface(means, replace(triplet, area=1000, top=0.9)))
    assert left < right and high < low


def test_point_at_the_edge_of_the_surface_is_whole(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    histograms = prediction_histograms(predictions, ALONE)
    means = surface(histograms, Triplet(0.0, 0, 0.5), np.ones(len(histograms)))
    x, y = dot(draw_surface(means, Triplet(0.0, 0, 0.5)))
    assert x < 0.2 and y > 0.6


def test_curve_marks_the_size_of_the_rule() -> None:
    curve = SizeCurve(np.array([0, 10, 100, 1000]), np.array([0.2, 0.3, 0.6, 0.1]))
    small, large = (dot(draw_curve(curve, Rule(Triplet(0.5, 0, 0.5), smallest_part=size)))[0] for size in (10, 1000))
    assert small < large
    with pytest.raises(IndexError):
        draw_curve(curve, Rule(Triplet(0.5, 0, 0.5), smallest_part=11))


def test_every_other_plot_shows_its_data() -> None:
    line = {"step": 10, "loss": 1.0, "validation_loss": 0.8, "score": 0.4}
    old, new = ({"fold0": [line, {**line, **more, "step": 20}]} for more in ({}, {"training_dice": 0.3}))
    assert draw_curves(old) == draw_curves(old) and decoded(draw_curves(old)).shape == decoded(draw_curves(new)).shape
    positive, scores = np.array([True, False, True, False]), np.array([0.9, 0.1, 0.4, 0.5])
    perfect, chance = (draw_ranking({"a": Ranking(positive, each, 0.5, 0.9, 0.8)}) for each in (positive * 1.0, scores))
    assert (decoded(perfect) != decoded(chance)).any()
    moved = draw_ranking({"a": Ranking(positive, scores, 0.9, 0.5, 0.6)})
    assert (decoded(moved) != decoded(chance)).sum() > 500, "the operating point"
    rows = [SizeRow(1, 10, 12, 0.5, 0.4), SizeRow(11, 90, 12, 0.9, 0.8)]
    assert (decoded(draw_sizes(rows)) != decoded(draw_sizes(rows[:1]))).any()
    bins = reliability(scores, positive), reliability(1 - scores, positive)
    one, other = Calibration(0.3, 0.2, *bins), Calibration(0.3, 0.2, *bins[::-1])
    assert (decoded(draw_reliability(one)) != decoded(draw_reliability(other))).any()


def test_intervals_of_bins_are_those_of_wilson() -> None:
    random = np.random.default_rng(0)
    scores = random.random(60)
    bins = reliability(scores, random.random(60) < scores)
    z = statistics.NormalDist().inv_cdf(0.975)
    for low, high, films, share in zip(*wilson_intervals(bins), bins.films, bins.share, strict=True):
        middle, spread = share + z * z / (2 * films), z * math.sqrt(share * (1 - share) / films + (z / films) ** 2 / 4)
        expected = [(middle + sign * spread) / (1 + z * z / films) for sign in (-1, 1)]
        assert [low, high] == pytest.approx(expected, abs=1e-9)
        assert low - 1e-12 <= share <= high + 1e-12
