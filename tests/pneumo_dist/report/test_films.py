"""Choice of films to show, and the position of their outlines."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from report_runs import store

from pneumo_dist.report.evaluate import evaluate
from pneumo_dist.report.films import GAP, caption, choose_films, contact_sheet, draw_film, sheet_films
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.palette import LABEL, PREDICTION

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


def test_sheet_goes_from_best_to_worst_and_ends_with_false_calls() -> None:
    overlaps = np.random.default_rng(0).integers(0, 11, 40).tolist()
    *positive, first, second = sheet_films(pixel_counts(overlaps, [5, 0, 7]))
    shown = [overlaps[i] for i in positive]
    assert len(shown) == 12 and shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (max(overlaps), min(overlaps))
    assert (first, second) == (42, 40), "the largest false-positive area first, and no rightly negative film"
    assert len(sheet_films(pixel_counts(overlaps, [5] * 9))) == 16
    assert sheet_films(pixel_counts([], [0, 3])) == [1] and sheet_films(pixel_counts([], [0, 0])) == [0, 1]


def test_outlines_lie_on_the_edges_of_label_and_prediction(jpeg_films: Shards, tmp_path: Path) -> None:
    predictions = store(jpeg_films, tmp_path / "exp", noise=0, shift=9)
    evaluated = evaluate(predictions, Rule(Triplet(0.5, 0, 0.5)))
    for index, row in enumerate(predictions.rows):
        grid = predictions.grid(index)
        place = jpeg_films.column("key").tolist().index(row["key"])
        drawn = draw_film(jpeg_films, place, evaluated, index, side=260)
        height, width = (max(1, round(260 * edge / max(grid.height, grid.width))) for edge in (grid.height, grid.width))
        picture = drawn[:height]
        assert drawn.shape[1] == width and len(drawn) > height + 30, "a caption below"
        assert picture.shape[0] / picture.shape[1] == pytest.approx(grid.height / grid.width, rel=0.01)
        label = rle.decode(str(row["rle"]), grid.height, grid.width)
        for mask, colour in ((label, LABEL), (np.roll(label, 9, axis=1), PREDICTION)):
            # Anti-aliased outlines have the hue of their colour, not all of it.
            hue = (picture[..., 2].astype(int) - picture[..., 0]) * np.sign(colour[2] - colour[0])
            found = hue > abs(colour[2] - colour[0]) / 3
            large = cv2.resize(mask, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            far = np.sum([cv2.distanceTransform(side, cv2.DIST_L2, 5) for side in (large, 1 - large)], axis=0)
            assert found.sum() > 100
            assert far[found].max() < 8, "about two label pixels"


def test_captions_name_film_dice_label_and_call(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", wrong=25)
    evaluated = evaluate(predictions, Rule(Triplet(0.99, 5, 0.5)))
    words = {True: "positive", False: "negative"}
    for index, row in enumerate(predictions.rows):
        dice, pixels = evaluated.counts.dice[index], evaluated.counts.predicted[index]
        label, call = words[row["rle"] != "-1"], words[bool(pixels)]
        assert caption(evaluated, index) == [row["image_id"], f"Dice {dice:.2f}, label {label}, call {call}"]


def test_contact_sheet_has_rows_of_four(films: Shards, tmp_path: Path) -> None:
    evaluated = evaluate(store(films, tmp_path / "exp"), Rule(Triplet(0.5, 5, 0.5)))
    rows = list(range(12))
    one, four, five = (contact_sheet(films, rows, evaluated, rows[:count], cell=64) for count in (1, 4, 5))
    assert one.shape[1] == 64 + 2 * GAP and four.shape[1] == five.shape[1] == 4 * 64 + 5 * GAP
    assert five.shape[0] > 1.6 * four.shape[0] and four.shape[0] > 64 + 2 * GAP + 30, "captions"
