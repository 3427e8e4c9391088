"""The occupied part of a mask holds every pixel, and its components have the numbers of the whole mask."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.crop import occupied


def test_an_empty_mask_has_no_part() -> None:
    assert occupied(np.zeros((5, 7), np.uint8)) is None


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0, 0, 1, 255]))
)
def test_part_holds_every_pixel(mask: Map) -> None:
    box = occupied(mask)
    assert (box is None) == (not mask.any())
    if box is not None:
        assert np.count_nonzero(mask[box]) == np.count_nonzero(mask)


@pytest.mark.parametrize("seed", range(40))
def test_components_keep_their_numbers(seed: int) -> None:
    chance = np.random.default_rng(seed)
    mask = np.zeros((120, 150), np.uint8)
    top, left = chance.integers(0, 60, 2).tolist()
    height, width = chance.integers(1, 60, 2).tolist()
    mask[top : top + height, left : left + width] = chance.random((height, width)) < chance.choice([0.1, 0.3, 0.5])
    box = occupied(mask)
    if box is None:
        return
    whole, part = (cv2.connectedComponents(each, connectivity=8) for each in (mask, mask[box]))
    assert whole[0] == part[0]
    np.testing.assert_array_equal(whole[1][box], part[1])
