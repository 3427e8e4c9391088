"""Layers in chest units: areas, brightness of thin lines, and the same picture at any size."""

import numpy as np
import pytest

from shards.phantom.canvas import Canvas, Stroke, ellipse, spline

STRAIGHT = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
TURNED = np.array([[0.8, -0.3, 0.5], [0.3, 0.8, 0.1]])
CORNERS = np.array([(-0.2, 0.2), (0.2, 0.2), (0.2, 0.6), (-0.2, 0.6)])


@pytest.mark.parametrize("matrix", [STRAIGHT, TURNED], ids=["straight", "turned"])
def test_film_fractions_map_back_to_chest_units(matrix: np.ndarray) -> None:
    canvas = Canvas(64, matrix)
    np.testing.assert_allclose(canvas.to_chest(canvas.to_film(CORNERS)), CORNERS, atol=1e-12)


@pytest.mark.parametrize("size", [64, 300])
@pytest.mark.parametrize("matrix", [STRAIGHT, TURNED], ids=["straight", "turned"])
def test_a_filled_outline_has_its_area_at_any_size(matrix: np.ndarray, size: int) -> None:
    layer = Canvas(size, matrix).fill(CORNERS)
    side = 0.4 * np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    assert side**2 <= layer.mean() <= (side + 2 / size) ** 2, "the border is drawn outwards by less than a pixel"
    assert (layer.min(), layer.max()) == (0.0, 1.0)


def test_overlapping_outlines_are_a_union() -> None:
    canvas = Canvas(100, STRAIGHT)
    one, other = CORNERS, CORNERS + 0.1
    union = canvas.fill(one, other)
    assert np.array_equal(union > 0, (canvas.fill(one) > 0) | (canvas.fill(other) > 0))
    assert union.max() == 1


def test_a_line_thinner_than_a_pixel_keeps_its_brightness() -> None:
    line = Stroke(np.array([(-0.3, 0.5), (0.3, 0.5)]), 0.01, 200.0)
    small, large = (Canvas(size, STRAIGHT).stroke([line]).mean() for size in (25, 400))
    assert small == pytest.approx(large, rel=0.2)


@pytest.mark.parametrize("sigma", [0.01, 0.1], ids=["direct", "on a reduced grid"])
def test_blur_keeps_the_mean(sigma: float) -> None:
    canvas = Canvas(128, STRAIGHT)
    layer = canvas.fill(CORNERS)
    blurred = canvas.blur(layer, sigma)
    assert blurred.mean() == pytest.approx(layer.mean(), rel=0.02)
    assert blurred.std() < layer.std()


def test_texture_has_zero_mean_and_about_unit_variance() -> None:
    texture = Canvas(256, STRAIGHT).texture(np.random.default_rng(0), 64)
    assert abs(texture.mean()) < 0.1
    assert 0.7 < texture.std() < 1.3


def test_a_spline_runs_evenly_through_its_knots() -> None:
    knots = [(0.0, 0.0), (0.1, 0.0), (0.5, 0.0), (1.0, 0.0)]
    np.testing.assert_allclose(spline(knots, 11), np.stack([np.linspace(0, 1, 11), np.zeros(11)], axis=1), atol=0.02)
    curve = spline([(0, 0), (1, 1), (2, 0)], 5)
    assert curve[[0, 2, 4]].tolist() == [[0, 0], [1, 1], [2, 0]]


def test_an_ellipse_has_its_half_axes() -> None:
    points = ellipse(1.0, 2.0, 0.5, 0.25)
    assert points.shape == (48, 2)
    np.testing.assert_allclose((((points - [1.0, 2.0]) / [0.5, 0.25]) ** 2).sum(axis=1), 1)
