"""The shape of a pneumothorax: its area, and label rows that cover its mask."""

import math

import cv2
import numpy as np
import pytest

from shards.phantom.anatomy import draw_lung
from shards.phantom.canvas import Canvas
from shards.phantom.pneumothorax import LARGEST_AREA, Pneumothorax, angles_about, draw_pneumothorax, label_rows

CANVAS = Canvas(400, np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]))


def draw(seed: int, side: int = 1) -> Pneumothorax:
    rng = np.random.default_rng(seed)
    lung = draw_lung(rng, side, 1.0, 1.0)
    return draw_pneumothorax(rng, CANVAS, lung.wall, lung.hilum, side)


def mask_of(region: Pneumothorax) -> np.ndarray:
    return (CANVAS.fill(*region.outlines) > 0.5).astype(np.uint8)


def test_areas_are_spread_within_their_limits() -> None:
    areas = np.array([mask_of(draw(seed)).mean() for seed in range(60)])
    assert areas.max() <= LARGEST_AREA * 1.1
    assert areas.min() > 0.005
    assert 0.02 < np.median(areas) < 0.05


@pytest.mark.parametrize("side", [-1, 1])
def test_the_pleura_is_the_inner_border_of_the_air(side: int) -> None:
    for seed in range(10):
        region = draw(seed, side)
        assert len(region.outlines) == len(region.pleura)
        for outline, pleura in zip(region.outlines, region.pleura, strict=True):
            np.testing.assert_array_equal(outline[len(outline) // 2 :][::-1], pleura)


def test_label_rows_cover_the_mask_and_none_is_empty() -> None:
    counts = []
    for seed in range(60):
        region = draw(seed)
        mask = mask_of(region)
        rows = label_rows(CANVAS, region, mask)
        counts.append(len(rows))
        assert all(row.any() for row in rows)
        assert np.array_equal(np.bitwise_or.reduce(rows), mask)
    assert 0.15 < np.mean(np.array(counts) > 1) < 0.55, "about a third has several rows"


def test_an_empty_mask_is_one_row() -> None:
    empty = np.zeros((400, 400), np.uint8)
    region = next(region for region in map(draw, range(60)) if region.cuts)
    (row,) = label_rows(CANVAS, region, empty)
    assert row is empty


@pytest.mark.parametrize("side", [-1, 1])
def test_angles_grow_from_down_past_the_wall_to_up(side: int) -> None:
    points = np.array([(0.0, 1.0), (side * 1.0, 0.0), (side * 1e-9, -1.0)])
    np.testing.assert_allclose(angles_about(points, (0.0, 0.0), side), [0, math.pi / 2, math.pi], atol=1e-6)


def test_angles_fall_along_the_wall() -> None:
    for seed in range(20):
        lung = draw_lung(np.random.default_rng(seed), 1, 1.0, 1.0)
        assert (np.diff(angles_about(lung.wall, lung.hilum, 1)) < 0).all()


def test_the_region_does_not_cross_itself() -> None:
    for seed in range(20):
        for outline in draw(seed).outlines:
            filled = CANVAS.fill(outline) > 0.5
            components, _ = cv2.connectedComponents(filled.astype(np.uint8))
            assert components == 2, "air in one piece, and the rest"
