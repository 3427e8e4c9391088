"""The path from a stored prediction to a mask."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import apply_triplet, image_score, label_map
from pneumo_dist.scoring.rounding import to_p8
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset.grid import Padding, fit_square
from shards.dataset.table import LabelGrid

maps = hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 255))
thresholds = st.one_of(st.integers(0, 254).map(lambda k: k / 255), st.integers(0, 99).map(lambda k: k / 100))


def noise(size: int) -> Map:
    return np.random.default_rng(size).integers(0, 256, (size, size), np.uint8)


def test_square_map_is_resized_to_the_label_grid() -> None:
    p8 = noise(32)
    grid = LabelGrid(100, 100, Padding(0, 0, 0, 0), 64)
    expected = cv2.resize(p8, (100, 100), interpolation=cv2.INTER_LINEAR_EXACT)
    np.testing.assert_array_equal(label_map(p8, grid), expected)


@pytest.mark.parametrize(("size", "rows"), [(64, slice(8, 56)), (32, slice(4, 28)), (128, slice(16, 112))])
def test_wide_film_loses_its_padding_before_the_resize(size: int, rows: slice) -> None:
    p8 = noise(size)
    grid = LabelGrid(90, 120, fit_square(90, 120, 64), 64)
    expected = cv2.resize(p8[rows], (120, 90), interpolation=cv2.INTER_LINEAR_EXACT)
    found = label_map(p8, grid)
    assert found.shape == (90, 120) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_tall_film_with_uneven_padding() -> None:
    p8 = noise(64)
    padding = fit_square(100, 67, 64)
    assert padding == Padding(0, 0, 10, 11)
    expected = cv2.resize(p8[:, 10:53], (67, 100), interpolation=cv2.INTER_LINEAR_EXACT)
    np.testing.assert_array_equal(label_map(p8, LabelGrid(100, 67, padding, 64)), expected)


def test_wide_film_with_uneven_padding() -> None:
    p8 = noise(64)
    padding = fit_square(67, 100, 64)
    assert padding == Padding(10, 11, 0, 0)
    expected = cv2.resize(p8[10:53], (100, 67), interpolation=cv2.INTER_LINEAR_EXACT)
    np.testing.assert_array_equal(label_map(p8, LabelGrid(67, 100, padding, 64)), expected)


def test_map_on_the_label_grid_is_unchanged() -> None:
    p8 = noise(48)
    np.testing.assert_array_equal(label_map(p8, LabelGrid(48, 48, Padding(0, 0, 0, 0), 48)), p8)


@given(maps, thresholds, st.integers(0, 21), thresholds)
def test_triplet_rule_is_the_definition(film: Map, top: float, area: int, bottom: float) -> None:
    probability = film / 255
    expected = probability > bottom
    if (probability > top).sum() < area:
        expected[:] = False
    mask = apply_triplet(film, Triplet(top, area, bottom))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected.astype(np.uint8))


@given(maps, hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 1)), thresholds, st.integers(0, 21), thresholds)
def test_histogram_dice_is_the_dice_of_the_mask(film: Map, truth: Map, top: float, area: int, bottom: float) -> None:
    triplet = Triplet(top, area, bottom)
    mask = apply_triplet(film, triplet)
    total = int(mask.sum()) + int(truth.sum())
    expected = 2 * int((mask & truth).sum()) / total if total else 1.0
    assert triplet_counts(film_histograms(film, truth)[None], triplet).dice.tolist() == [expected]


@given(maps, thresholds, st.integers(0, 22))
def test_image_score_is_above_top_exactly_when_the_film_is_called_positive(film: Map, top: float, area: int) -> None:
    called = (film / 255 > top).sum() >= area
    assert (image_score(film, area) > top) == called


def test_image_score_is_the_area_th_largest_probability() -> None:
    film = np.array([[5, 250, 100], [100, 0, 30]], np.uint8)
    assert [image_score(film, area) for area in (1, 2, 3, 6)] == [250 / 255, 100 / 255, 100 / 255, 0.0]


def test_p8_rounds_to_the_nearest_level() -> None:
    levels = torch.arange(256, dtype=torch.float64)
    for shift in (-0.49, 0.0, 0.49):
        probability = ((levels + shift) / 255).clamp(0, 1).float().reshape(1, 1, 16, 16)
        np.testing.assert_array_equal(to_p8(probability).reshape(-1), np.arange(256))


def test_p8_of_an_average_is_rounded_once_after_averaging() -> None:
    members = torch.tensor([0.4, 0.4, 1.4]) / 255
    mean = to_p8(members.mean().reshape(1, 1, 1, 1))
    each = [int(to_p8(member.reshape(1, 1, 1, 1)).item()) for member in members]
    assert int(mean.item()) == 1  # (0.4 + 0.4 + 1.4) / 3 = 0.73
    assert each == [0, 0, 1]


def test_p8_keeps_shape_of_one_film_and_takes_half_precision() -> None:
    p8 = to_p8(torch.full((1, 1, 2, 3), 0.5, dtype=torch.bfloat16, requires_grad=True))
    assert p8.shape == (1, 2, 3) and p8.dtype == np.uint8
    assert (p8 == 128).all()
