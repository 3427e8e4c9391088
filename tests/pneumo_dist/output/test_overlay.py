"""Overlays: the film, its mask, and a margin of text."""

from typing import Any

import cv2
import numpy as np
import pytest
from film_files import noise

from pneumo_dist.output.overlay import EMPTY, FOUND, draw_film


def test_the_overlay_shows_film_outline_fill_and_margin() -> None:
    image, mask = noise(200, 160), np.zeros((200, 160), np.uint8)
    mask[50:100, 30:80] = 1
    drawn = draw_film(image, mask)
    assert drawn.dtype == np.uint8 and drawn.shape[0] > 200 and drawn.shape[1:] == (160, 3)
    outside = drawn[:200][mask == 0]
    np.testing.assert_array_equal(outside, np.repeat(image[mask == 0][:, None], 3, axis=1))
    np.testing.assert_array_equal(drawn[50, 30:80], np.tile([255, 0, 0], (50, 1)))
    inner = drawn[55:95, 35:75].astype(int)
    np.testing.assert_array_equal(inner[..., 0], np.rint(image[55:95, 35:75] * 0.8 + 51))
    np.testing.assert_array_equal(inner[..., 1], np.rint(image[55:95, 35:75] * 0.8))


def list_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets every text that OpenCV draws from now on."""
    texts: list[str] = []
    draw = cv2.putText

    def noted(strip: Any, text: str, *more: Any) -> Any:
        texts.append(text)
        return draw(strip, text, *more)

    monkeypatch.setattr(cv2, "putText", noted)
    return texts


def test_the_margin_says_whether_there_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_texts = list_texts(monkeypatch)
    image, mask = noise(400, 300), np.zeros((400, 300), np.uint8)
    empty = draw_film(image, mask)
    np.testing.assert_array_equal(empty[:400], np.repeat(image[:, :, None], 3, axis=2))
    assert empty[400:].max() > 100, "the margin has no text"
    assert not empty[400:, 290:].any(), "the text runs out of the margin"
    mask[9:50, 9:50] = 1
    draw_film(image, mask)
    assert drawn_texts[::2] == [EMPTY, FOUND] and EMPTY == "no pneumothorax found"
    assert all("research use only" in text for text in drawn_texts[1::2])


@pytest.mark.parametrize("width", [64, 300, 2000])
def test_the_margin_shows_every_warning_in_full(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    drawn_texts = list_texts(monkeypatch)
    image, mask = noise(90, width), np.zeros((90, width), np.uint8)
    texts = ["no BodyPartExamined: taken as a chest film", "its pixels are not square: " + "resampled " * 9]
    drawn = draw_film(image, mask, texts)
    assert " ".join(" ".join(drawn_texts[2:]).split()) == " ".join(f"warning: {text}".strip() for text in texts)
    assert drawn.shape[0] > draw_film(image, mask).shape[0]
    assert drawn[-12 * len(drawn_texts[2:]) :].any() and not drawn[90:, -1].any(), "a line runs out of the margin"


@pytest.mark.parametrize("width", [64, 300, 2000])
def test_a_caption_comes_before_the_warnings(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    drawn_texts = list_texts(monkeypatch)
    image, mask = noise(90, width), np.zeros((90, width), np.uint8)
    caption = ["area: 12,345 px, 1,234 mm2", "model: " + "W" * 64]
    drawn = draw_film(image, mask, ["turned"], caption)
    shown = "".join("".join(drawn_texts[2:]).split())
    assert shown == "".join("".join([*caption, "warning: turned"]).split())
    assert not drawn[90:, -1].any(), "a line runs out of the margin"
