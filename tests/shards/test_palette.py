"""Colours that colour-blind readers tell apart, by models of their vision."""

import itertools

import numpy as np
import pytest

from shards.palette import LABEL, LABEL_TEXT, LINES, PREDICTION, PREDICTION_TEXT, Colour, css

# G. M. Machado et al., "A physiologically-based model for simulation of color vision deficiency", 2009, severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: Colour) -> np.ndarray:
    share = np.array(colour) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(colour: Colour, vision: str) -> np.ndarray:
    """Return a colour as a reader sees it, in CIELAB, where a distance of 2.3 is just noticeable."""
    seen = np.clip(np.array(VISION[vision]) @ linear(colour), 0, 1)
    x, y, z = (XYZ @ seen) / (XYZ @ np.ones(3))
    f = [np.cbrt(value) if value > 0.008856 else 7.787 * value + 16 / 116 for value in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: Colour, other: Colour, vision: str) -> float:
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


@pytest.mark.parametrize("vision", VISION)
def test_label_and_prediction_differ_for_every_reader(vision: str) -> None:
    for label, prediction in ((LABEL, PREDICTION), (LABEL_TEXT, PREDICTION_TEXT)):
        assert distance(label, prediction, vision) > 40
    greys = [(level, level, level) for level in (0, 60, 120)]
    assert all(distance(colour, grey, vision) > 20 for colour in (LABEL, PREDICTION) for grey in greys)
    assert min(distance(*pair, vision) for pair in itertools.combinations(LINES[:3], 2)) > 10


def test_green_and_red_would_not() -> None:
    assert distance((80, 220, 80), (235, 80, 60), "deuteranopia") < distance(LABEL, PREDICTION, "deuteranopia") / 1.5


def test_text_on_white_has_the_contrast_of_wcag() -> None:
    for colour in (LABEL_TEXT, PREDICTION_TEXT):
        luminance = float(XYZ[1] @ linear(colour))
        assert 1.05 / (luminance + 0.05) >= 4.5


def test_colours_are_written_for_css() -> None:
    assert css((0, 114, 178)) == "#0072b2" and len({css(colour) for colour in LINES}) == len(LINES)
