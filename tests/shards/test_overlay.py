"""Overlays: outlines at the edges of the masks, a legend of what is drawn, and text that fits."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from images import drawn_texts

from shards.overlay import LABEL_LINE, PREDICTION_LINE, draw_overlay, margin, outlined
from shards.palette import BACKGROUND, LABEL, PREDICTION, TEXT, Colour

Picture = npt.NDArray[np.uint8]


def near(picture: Picture, colour: Colour) -> npt.NDArray[np.bool_]:
    """Return where a grey film is drawn on: anti-aliased outlines have the hue of their colour, not all of it."""
    blueness = picture[..., 2].astype(int) - picture[..., 0]
    return np.asarray(
        blueness > 25 if colour == LABEL else blueness < -25 if colour == PREDICTION else picture.min(-1) > 180
    )


def square(height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]) -> Picture:
    mask = np.zeros((height, width), np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


@pytest.mark.parametrize("grain", [1, 4])
def test_the_label_is_solid_and_the_prediction_dashed(grain: int) -> None:
    film = np.full((240, 200), 90, np.uint8)
    label, predicted = square(240, 200, (20, 110), (30, 160)), square(240, 200, (130, 220), (30, 160))
    picture = draw_overlay(film, label[::grain, ::grain], predicted[::grain, ::grain])[:240]
    for mask, colour, share in ((label, LABEL, (0.97, 1.0)), (predicted, PREDICTION, (0.45, 0.8))):
        found = near(picture, colour)
        edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        assert (
            found[~cv2.dilate(edge.astype(np.uint8), np.ones((2 * grain + 1,) * 2, np.uint8)).astype(bool)].sum() == 0
        )
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        band = found[rows[0] + 20 : rows[-1] - 20, columns[0] - grain : columns[0] + grain + 1]
        assert share[0] <= band.any(1).mean() <= share[1], "dashes have gaps, a solid line has none"
    untouched = ~(near(picture, LABEL) | near(picture, PREDICTION))
    assert (picture[untouched] == 90).all(-1).mean() > 0.95


def test_a_film_without_masks_stays_as_it_is() -> None:
    film = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    np.testing.assert_array_equal(draw_overlay(film, None, None), np.repeat(film[:, :, None], 3, axis=2))


def test_the_fill_is_inside_the_prediction_alone() -> None:
    film = np.random.default_rng(0).integers(0, 256, (80, 60), np.uint8)
    mask = square(80, 60, (20, 60), (10, 50))
    picture = outlined(film, None, mask, fill=0.25)
    inside = film[25:55, 15:45, None] * 0.75 + np.array(PREDICTION) * 0.25
    np.testing.assert_array_equal(picture[25:55, 15:45], np.rint(inside).astype(np.uint8))
    np.testing.assert_array_equal(picture[:18], np.repeat(film[:18, :, None], 3, axis=2))


def test_the_legend_names_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    film, mask = np.zeros((50, 300), np.uint8), square(50, 300, (5, 40), (5, 40))
    both = draw_overlay(film, mask, mask, ["film 7"])[50:]
    assert texts == ["label", "prediction", "film 7"]
    assert near(both, LABEL).sum() > near(both, PREDICTION).sum() > 5, "a dashed sample has gaps"
    texts.clear()
    alone = draw_overlay(film, None, mask)[50:]
    assert texts == ["prediction"] and not near(alone, LABEL).any() and near(alone, PREDICTION).any()


@pytest.mark.parametrize("width", [100, 256, 1100, 3000])
def test_lines_are_wrapped_and_shown_in_full(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    texts = drawn_texts(monkeypatch)
    lines = ["1.2.826.0.1.3680043.8.498.1209097232257150479325503216190", "Dice 0.83, label positive, call negative"]
    strip = margin(width, lines, [LABEL_LINE, PREDICTION_LINE])
    assert texts[:2] == ["label", "prediction"]
    assert "".join("".join(texts[2:]).split()) == "".join("".join(lines).split())
    assert strip.shape[1:] == (width, 3) and (strip[:, -1] == BACKGROUND).all(), "a line runs out of the margin"
    assert (strip[-2:] == BACKGROUND).all() and near(strip, TEXT).any()
    assert len(margin(width, lines, scale=1.0)) >= len(margin(width, lines, scale=0.5))
    assert margin(width, []).shape == (0, width, 3)


def test_characters_that_the_font_lacks_become_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    margin(300, ["Zürich"])
    assert texts == ["Z?rich"]
