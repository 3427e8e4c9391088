"""Every plot is a picture with content."""

from pathlib import Path

import cv2
import numpy as np
from report_runs import ALONE, store

from pneumo_dist.report.plots import draw_surface
from pneumo_dist.thresholds.tune import prediction_histograms, tune
from pneumo_dist.thresholds.worth import surface
from shards.dataset.table import Shards


def test_surface_is_a_picture(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    histograms = prediction_histograms(predictions, ALONE)
    triplet = tune(predictions, histograms).thresholds.triplet
    found = surface(histograms, triplet, np.ones(len(histograms)))
    picture = cv2.imdecode(np.frombuffer(draw_surface(found, triplet), np.uint8), 1)
    assert picture is not None and picture.std() > 10
