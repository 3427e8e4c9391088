"""What a prediction finds on a film: mask, score and area."""

import cv2
import numpy as np
import pytest
from film_files import noise

from pneumo_dist.output.found import FilmPrediction, find, measured_area
from pneumo_dist.scoring.masks import Rule, apply_rule, image_score, label_map
from pneumo_dist.scoring.stacking import Stacking
from pneumo_dist.scoring.triplet import Triplet
from shards.build.sample import NOT_SQUARE
from shards.dataset.grid import fit_square
from shards.dataset.table import LabelGrid
from shards.dicom.film import Film, FilmInfo


@pytest.mark.parametrize("aspect", [1.0, 1.5])
def test_the_mask_is_that_of_the_rule_on_the_films_own_grid(aspect: float) -> None:
    p8 = np.zeros((64, 64), np.uint8)
    cv2.ellipse(p8, (24, 30), (9, 14), 20, 0, 360, 255, -1)
    grid, rule = LabelGrid(90, 70, fit_square(90, 70, 64), 64), Rule(Triplet(0.8, 20, 0.4), gate=0.5)
    found = find(Film(noise(90, 70), FilmInfo(), ("odd",), aspect=aspect), FilmPrediction(p8, grid, 0.75), rule)
    expected = apply_rule(label_map(p8, grid), rule, 0.75)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(found.mask, expected)
    assert found.called and found.area_px == expected.sum() and found.area_mm2 is None
    assert (found.score, found.class_probability) == (image_score(label_map(p8, grid), 20), 0.75)
    assert found.warnings == (("odd",) if aspect == 1 else ("odd", NOT_SQUARE))
    shut = find(Film(noise(90, 70), FilmInfo()), FilmPrediction(p8, grid, 0.5), rule)
    assert not shut.called and not shut.mask.any() and shut.score == found.score


def test_the_score_of_a_stacked_gate_is_its_probability() -> None:
    p8 = np.zeros((64, 64), np.uint8)
    p8[20:40, 20:40] = 200
    grid, film = LabelGrid(64, 64, fit_square(64, 64, 64), 64), Film(noise(64, 64), FilmInfo())
    gate = Stacking(("class_probability", "mass"), (0, 9), (1, 2), (1, 0.5), -0.2, 0.6)
    rule = Rule(Triplet(0, 0, 0.4), stacking=gate)
    for likely, called in ((0.2, False), (0.9, True)):
        found = find(film, FilmPrediction(p8, grid, likely), rule)
        assert found.score == gate.film_probability(p8, likely) and (found.score > 0.6) == called == found.called


@pytest.mark.parametrize(
    ("spacing", "area", "reason"),
    [
        ((0.25, 0.25), 100 * 0.25 * 0.25, None),
        ((0.4, 0.5), 100 * 0.4 * 0.5, None),
        ((0.25, 0.249), None, "24.9 cm wide"),
        ((0.25, 0.501), None, "50.1 cm wide"),
        ((0.143, 0.143), None, "1000 columns of 0.143 mm (ImagerPixelSpacing) make a film 14.3 cm wide"),
    ],
)
def test_the_area_is_measured_if_the_width_can_be_that_of_a_chest(
    spacing: tuple[float, float], area: float | None, reason: str | None
) -> None:
    mask = np.zeros((2000, 1000), np.uint8)
    mask[10:20, 10:20] = 1
    found = measured_area(
        mask, FilmInfo(spacing_row=spacing[0], spacing_column=spacing[1], spacing_tag="ImagerPixelSpacing")
    )
    assert found.pixels == 100 and found.mm2 == area
    assert found.spacing_mm == spacing and found.spacing_tag == "ImagerPixelSpacing"
    assert (found.missing_because is None) == (reason is None)
    assert (reason or "") in (found.missing_because or "")


def test_no_spacing_is_no_area() -> None:
    found = measured_area(np.ones((4, 5), np.uint8), FilmInfo())
    assert (found.pixels, found.mm2, found.spacing_mm, found.spacing_tag) == (20, None, None, None)
    assert "neither a PixelSpacing nor an ImagerPixelSpacing" in (found.missing_because or "")
