"""Histograms on a device are the integers that OpenCV gives on the host."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_dist.scoring.device_histograms import device_histograms, resized
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import label_map
from shards.dataset.grid import Padding, fit_square
from shards.dataset.table import LabelGrid


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 150), st.integers(1, 150), st.integers(1, 90))
def test_maps_of_any_size_are_resized_to_the_bit(seed: int, size: int, height: int, width: int, stored: int) -> None:
    chance = np.random.default_rng(seed)
    p8 = chance.integers(0, 256, (size, size), np.uint8)
    grid = LabelGrid(height, width, fit_square(height, width, stored), stored)
    expected = label_map(p8, grid)
    np.testing.assert_array_equal(resized(torch.from_numpy(p8), grid).numpy(), expected)
    truth = (chance.random((height, width)) < chance.random()).astype(np.uint8)
    found = device_histograms(torch.from_numpy(p8), grid, truth)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), film_histograms(expected, truth))
    np.testing.assert_array_equal(
        device_histograms(torch.from_numpy(p8), grid, None).numpy(), film_histograms(expected, np.zeros_like(truth))
    )


@pytest.mark.parametrize(
    ("size", "side"), [(512, 1024), (768, 1024), (384, 1024), (1024, 1024), (1024, 2991), (512, 499)]
)
def test_maps_of_usual_sizes_are_resized_to_the_bit(size: int, side: int) -> None:
    p8 = np.random.default_rng(size).integers(0, 256, (size, size), np.uint8)
    grid = LabelGrid(side, side, Padding(0, 0, 0, 0), size)
    np.testing.assert_array_equal(resized(torch.from_numpy(p8), grid).numpy(), label_map(p8, grid))
