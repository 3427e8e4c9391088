"""Overlays: the film, its mask, and a margin of text."""

import cv2
import numpy as np
import pytest
from film_files import noise
from images import drawn_texts

from pneumo_dist.output.overlay import EMPTY, FILL, FOUND, NOTE, draw_film
from shards.palette import PREDICTION


def test_the_overlay_shows_film_outline_fill_and_margin() -> None:
    image, mask = noise(200, 160), np.zeros((200, 160), np.uint8)
    mask[50:100, 30:80] = 1
    drawn = draw_film(image, mask)
    assert drawn.dtype == np.uint8 and drawn.shape[0] > 200 and drawn.shape[1:] == (160, 3)
    outside = cv2.dilate(mask, np.ones((5, 5), np.uint8)) == 0
    np.testing.assert_array_equal(drawn[:200][outside], np.repeat(image[outside][:, None], 3, axis=1))
    hue = drawn[50, 30:80, 0].astype(int) - drawn[50, 30:80, 2]
    assert 0.4 < (hue > 60).mean() < 0.9, "dashed"
    inner = image[55:95, 35:75, None] * (1 - FILL) + np.array(PREDICTION) * FILL
    np.testing.assert_array_equal(drawn[55:95, 35:75], np.rint(inner).astype(np.uint8))


def test_the_margin_says_whether_there_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = drawn_texts(monkeypatch)
    image, mask = noise(400, 300), np.zeros((400, 300), np.uint8)
    empty = draw_film(image, mask)
    np.testing.assert_array_equal(empty[:400], np.repeat(image[:, :, None], 3, axis=2))
    mask[9:50, 9:50] = 1
    draw_film(image, mask)
    assert recorded == ["prediction", EMPTY, NOTE, "prediction", FOUND, NOTE] and EMPTY == "no pneumothorax found"
    assert "research use only" in NOTE


@pytest.mark.parametrize("width", [64, 300, 2000])
def test_the_margin_shows_every_warning_in_full(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    recorded = drawn_texts(monkeypatch)
    image, mask = noise(90, width), np.zeros((90, width), np.uint8)
    texts = ["no BodyPartExamined: taken as a chest film", "its pixels are not square: " + "resampled " * 9]
    drawn = draw_film(image, mask, texts)
    shown = "".join("".join(recorded[1:]).split())
    assert shown == "".join("".join([EMPTY, NOTE, *(f"warning: {text}" for text in texts)]).split())
    assert drawn.shape[0] > draw_film(image, mask).shape[0]


@pytest.mark.parametrize("width", [64, 300, 2000])
def test_a_caption_comes_before_the_warnings(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    recorded = drawn_texts(monkeypatch)
    image, mask = noise(90, width), np.zeros((90, width), np.uint8)
    caption = ["area: 12,345 px, 1,234 mm2", "model: " + "W" * 64]
    draw_film(image, mask, ["turned"], caption)
    shown = "".join("".join(recorded[1:]).split())
    assert shown == "".join("".join([EMPTY, NOTE, *caption, "warning: turned"]).split())
