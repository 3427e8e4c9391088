"""Levels and histograms, compared with the pixels themselves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_dice import Film, film_of

from pneumo_dist.scoring.histograms import counts_above, film_histograms, level


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 0.75, 0.8, 0.2, 0.1, 1.0, *(k / 255 for k in range(256))])
def test_level_cuts_where_the_probability_does(threshold: float) -> None:
    p8 = np.arange(256)
    np.testing.assert_array_equal(p8 > level(threshold), p8 / 255 > threshold)


@pytest.mark.parametrize("value", [1, 51, 128, 153, 204, 254])
def test_level_forgives_rounding_errors_of_a_threshold(value: int) -> None:
    assert level(math.nextafter(value / 255, 0)) == level(math.nextafter(value / 255, 1)) == value


@given(film_of(st.integers(0, 255), 4))
def test_histograms_and_counts_are_those_of_the_pixels(film: Film) -> None:
    values, truth = film
    histograms = film_histograms(values, truth)
    above = counts_above(histograms)
    assert histograms.dtype == np.int64
    for value in range(256):
        assert histograms[0, value] == (values == value).sum()
        assert histograms[1, value] == ((values == value) & (truth == 1)).sum()
        assert above[0, value] == (values > value).sum()
        assert above[1, value] == ((values > value) & (truth == 1)).sum()


def test_counts_of_a_large_grid_are_exact() -> None:
    """OpenCV's float32 holds integers up to 2^24 = 16,777,216."""
    values = np.zeros((4, 2**23), np.uint8)
    values[0, 0] = 7
    truth = np.ones_like(values)
    truth[3, :5] = 0
    histograms = film_histograms(values, truth)
    assert histograms[:, 7].tolist() == [1, 1]
    assert histograms[:, 0].tolist() == [2**25 - 1, 2**25 - 6]


def test_part_of_a_map_and_a_single_row_are_counted() -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 31), np.uint8)
    for part in (values[2:7, 3:20], values[:1], values[:, 4:5]):
        expected = np.bincount(part.reshape(-1), minlength=256)
        np.testing.assert_array_equal(film_histograms(part, np.ones_like(part)), [expected, expected])


def test_labels_of_255_count_like_labels_of_1() -> None:
    values, truth = np.array([[3, 200]], np.uint8), np.array([[0, 255]], np.uint8)
    np.testing.assert_array_equal(film_histograms(values, truth), film_histograms(values, truth // 255))
