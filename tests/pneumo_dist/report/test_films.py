"""Choice of films to show, and the position of their outlines."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from report_runs import store

from pneumo_dist.report.films import choose_films, contact_sheet, draw_film, sheet_films
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.drawing import LABEL_COLOUR, PREDICTION_COLOUR

HALF = Triplet(0.5, 1, 0.5)


def pixel_counts(overlaps: list[int], wrong: list[int]) -> PixelCounts:
    """Return films with 10 labelled pixels and these overlaps, then negative films with these predicted pixels."""
    found = np.zeros((len(overlaps) + len(wrong), 2, 256), np.int64)
    for film, overlap in enumerate(overlaps):
        found[film, :, 255] = overlap
        found[film, 1, 0] = 10 - overlap
    for film, pixels in enumerate(wrong, len(overlaps)):
        found[film, 0, 255] = pixels
    found[:, 0, 0] = 100 - found[:, 0, 255]
    return triplet_counts(found, HALF)


def test_best_median_and_worst_films_and_largest_false_positives() -> None:
    overlaps = [3, 9, 1, 10, 5, 0, 7, 2, 8, 4, 6]
    shown = {choice.title: choice.films for choice in choose_films(pixel_counts(overlaps, [0, 4, 9, 1]), count=2)}
    assert [[overlaps[i] for i in films] for films in list(shown.values())[:3]] == [[10, 9], [6, 5], [0, 1]]
    assert shown["Negative films with the largest false-positive area"] == (13, 12)


@pytest.mark.parametrize("count", range(14))
def test_no_film_is_shown_twice_and_few_films_are_all_shown(count: int) -> None:
    films = [i for choice in choose_films(pixel_counts(list(range(count))[:11], [0])) for i in choice.films]
    assert len(films) == len(set(films)) == min(count, 11)


def test_sheet_goes_from_best_to_worst() -> None:
    overlaps = np.random.default_rng(0).integers(0, 11, 40).tolist()
    shown = [overlaps[i] for i in sheet_films(pixel_counts(overlaps, [5]))]
    assert len(shown) == 12 and shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (max(overlaps), min(overlaps))
    assert sheet_films(pixel_counts([], [0, 3])) == [0, 1], "without positive films, the negative ones"


def test_outlines_lie_on_the_edges_of_label_and_prediction(jpeg_films: Shards, tmp_path: Path) -> None:
    predictions = store(jpeg_films, tmp_path / "exp", noise=0, shift=9)
    for index, row in enumerate(predictions.rows):
        grid = predictions.grid(index)
        place = jpeg_films.column("key").tolist().index(row["key"])
        picture = draw_film(jpeg_films, place, predictions, index, Rule(Triplet(0.5, 0, 0.5)), side=260)
        assert max(picture.shape) == 260
        assert picture.shape[0] / picture.shape[1] == pytest.approx(grid.height / grid.width, rel=0.01)
        label = rle.decode(str(row["rle"]), grid.height, grid.width)
        for mask, colour in ((label, LABEL_COLOUR), (np.roll(label, 9, axis=1), PREDICTION_COLOUR)):
            drawn = np.abs(picture.astype(int) - colour).max(-1) < 25
            large = cv2.resize(mask, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            far = np.sum([cv2.distanceTransform(side, cv2.DIST_L2, 5) for side in (large, 1 - large)], axis=0)
            assert drawn.sum() > 100
            assert far[drawn].max() < 8, "about two label pixels"


def test_contact_sheet_has_rows_of_four() -> None:
    pictures = [np.full((40, 60, 3), 90, np.uint8)] * 5
    sheet = contact_sheet(pictures, ["a"] * 5, cell=64)
    assert sheet.shape == (128, 256, 3)
    assert (sheet[64:, 64:] == 255).all() and (sheet[12:52, 2:62] == 90).mean() > 0.9
