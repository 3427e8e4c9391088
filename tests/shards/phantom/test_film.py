"""Rendered films: their masks, sizes and grey levels."""

import numpy as np
import pytest

from shards.dataset import rle
from shards.phantom.dataset import render_film


@pytest.mark.parametrize("size", [64, 100, 130])
def test_label_rows_cover_the_mask_and_the_mask_is_of_a_size_to_learn(size: int) -> None:
    several = 0
    for i in range(16):
        film = render_film(np.random.default_rng([5, i]), size, True)
        assert film.image.shape == film.mask.shape == (size, size)
        assert film.image.dtype == film.mask.dtype == np.uint8
        assert all(row.any() for row in film.label_rows)
        assert np.array_equal(np.bitwise_or.reduce(film.label_rows), film.mask)
        assert np.array_equal(rle.decode_union(map(rle.encode, film.label_rows), size, size), film.mask)
        assert 0.004 < film.mask.mean() < 0.13
        several += len(film.label_rows) > 1
    assert several > 0


def test_a_negative_film_has_no_mask() -> None:
    film = render_film(np.random.default_rng(1), 64, False)
    assert not film.mask.any()
    assert film.label_rows == ()
    assert film.image.std() > 20


def test_a_film_looks_the_same_at_any_size() -> None:
    small, large = (render_film(np.random.default_rng(2), size, True) for size in (128, 512))
    reduced = large.image.reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert np.corrcoef(reduced.ravel(), small.image.ravel())[0, 1] > 0.98
    common = large.mask.reshape(128, 4, 128, 4).mean(axis=(1, 3)) > 0.5
    assert 2 * (common & (small.mask > 0)).sum() / (common.sum() + small.mask.sum()) > 0.9
