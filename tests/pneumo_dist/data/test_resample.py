"""Resampled images and masks are aligned under every transform and equal the definition; noise is as stated."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.augment import NOISE_OFFSETS, Parameters, draw
from pneumo_dist.data.elastic import InputElastic
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.geometry import Geometry, Lens, Stored, Warp, coarse_map, matrix
from pneumo_dist.data.resample import BORDERS, NOISE_LEVEL, add_noise, by_coarse_map, by_matrix, noise_window
from pneumo_dist.data.torch_loader import Films
from shards.dataset.table import Shards

Image = npt.NDArray[np.uint8]

PLAIN = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
OFF: dict[str, Any] = {"hflip": 0, "shift_scale_rotate": {"p": 0}, "tone": {"p": 0}}
TRANSFORMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "flip": {"hflip": 1},
    "shift": {"shift_scale_rotate": {"p": 1, "shift": 0.15, "scale": 0, "rotate": 0}},
    "scale": {"shift_scale_rotate": {"p": 1, "shift": 0, "scale": 0.2, "rotate": 0}},
    "rotate": {"shift_scale_rotate": {"p": 1, "shift": 0, "scale": 0, "rotate": 45}},
    "elastic": {"distortion": {"p": 1, "grid": None, "optical": None}},
    "strong elastic": {"distortion": {"p": 1, "elastic": {"alpha": 3000, "sigma": 30}, "grid": None, "optical": None}},
    "fine elastic": {"distortion": {"p": 1, "elastic": {"pixels": "input"}, "grid": None, "optical": None}},
    "grid": {"distortion": {"p": 1, "elastic": None, "optical": None}},
    "open grid": {"distortion": {"p": 1, "elastic": None, "optical": None, "grid_open": True}},
    "optical": {"distortion": {"p": 1, "elastic": None, "grid": None}},
    "crop": {"random_resized_crop": {"p": 1, "area": [0.3, 0.6]}},
    "contrast": {"tone": {"p": 1, "gamma": None, "brightness": None}},
    "gamma": {"tone": {"p": 1, "contrast": None, "brightness": None}},
    "brightness": {"tone": {"p": 1, "contrast": None, "gamma": None}},
    "brightness by mean": {"tone": {"p": 1, "contrast": None, "gamma": None, "brightness_by": "mean"}},
    "noise": {"noise": {"p": 1}},
    "clahe": {"clahe": {"p": 1}},
    "all of space": {
        "hflip": 1,
        "shift_scale_rotate": {"p": 1},
        "distortion": {"p": 1},
        "random_resized_crop": {"p": 1},
    },
}


def by_torch(reader: FilmReader, requests: list[FilmRequest]) -> Batch:
    images, masks, rows = zip(*(Films(reader)[request] for request in requests), strict=True)
    return Batch(torch.stack(images), torch.stack(masks), np.array(rows))


def by_dali(reader: FilmReader, requests: list[FilmRequest]) -> Batch:
    dali = pytest.importorskip("pneumo_dist.data.dali")
    (batch,) = dali.dali_batches(reader, [requests], len(requests))
    assert isinstance(batch, Batch)
    return batch


# -- alignment


@pytest.mark.parametrize("make", [by_torch, by_dali])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_film_that_is_its_own_mask_stays_so(
    shapes: Shards, name: str, border: str, make: Callable[[FilmReader, list[FilmRequest]], Batch]
) -> None:
    augment = AugmentConfig.model_validate({**OFF, "border": border, **TRANSFORMS[name]})
    reader = FilmReader(shapes, InputSpec(96, 1, PLAIN), with_mask=True, augment=augment, seed=4)
    batch = make(reader, [FilmRequest(row, epoch, 0) for row in range(4) for epoch in range(3)])
    images, masks = batch.images[:, 0].numpy() * 255 > 127, batch.masks[:, 0].numpy() > 0.5
    shared = united = 0
    for image, mask in zip(images, masks, strict=True):
        grey = mask.astype(np.uint8)
        edge = cv2.dilate(grey, np.ones((3, 3))) != cv2.erode(grey, np.ones((3, 3)))
        assert mask.sum() > 200
        assert not ((image != mask) & ~edge).any(), "they differ elsewhere than along the edge"
        shared, united = shared + int((image & mask).sum()), united + int((image | mask).sum())
    assert shared / united > 0.965


@pytest.mark.parametrize("name", ["flip", "shift", "scale", "rotate", "strong elastic", "grid", "optical", "crop"])
def test_every_transform_of_space_moves_the_mask(shapes: Shards, name: str) -> None:
    reader = FilmReader(
        shapes, InputSpec(96, 1, PLAIN), True, AugmentConfig.model_validate({**OFF, **TRANSFORMS[name]}), 4
    )
    moved = by_torch(reader, [FilmRequest(0, epoch, 0) for epoch in range(3)]).masks
    still = by_torch(reader, [FilmRequest(0)]).masks
    assert all(int((mask != still[0]).sum()) > 20 for mask in moved)


# -- against the definition


def sampled(image: Image, points: npt.NDArray[np.float64], border: str, order: int) -> npt.NDArray[np.float64]:
    """Sample an image with SciPy at points (x, y), counted from the corner of the first pixel."""
    mode = {"constant": "grid-constant", "reflect": "reflect", "reflect_101": "mirror"}[border]
    places = [points[..., 1] - 0.5, points[..., 0] - 0.5]
    return np.asarray(map_coordinates(image.astype(np.float64), places, order=order, mode=mode))


def points_of(geometry: Geometry, size: int, stored: Stored) -> npt.NDArray[np.float64]:
    """Return the exact map at the centre of every pixel."""
    centres = np.arange(size) + 0.5
    grid = np.stack([*np.meshgrid(centres, centres, indexing="xy"), np.ones((size, size))], axis=-1)
    if geometry.warp is None:
        return np.asarray(grid @ matrix(geometry, size, stored).T)
    unit = Stored(1)
    film = Geometry(False, geometry.angle, geometry.scale, geometry.shift, None, geometry.crop)
    assert not isinstance(geometry.warp, InputElastic), "defined at nodes alone"
    warped = geometry.warp(grid @ matrix(film, size, unit).T)
    if geometry.flip:
        warped = warped * [-1, 1] + [1, 0]
    return np.asarray(warped * stored.side - stored.origin)


def film_and_mask(height: int, width: int) -> tuple[Image, Image]:
    noise = np.random.default_rng(5).integers(0, 256, (height, width), np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), noise, 0, 255, cv2.NORM_MINMAX)
    return np.asarray(image, np.uint8), (image > 128).astype(np.uint8) * np.uint8(255)


warps: st.SearchStrategy[Warp | None] = st.one_of(
    st.none(), st.builds(Lens, st.floats(-0.5, 0.5), st.tuples(st.floats(-0.01, 0.01), st.floats(-0.01, 0.01)))
)
geometries = st.builds(
    Geometry,
    flip=st.booleans(),
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(0.5, 2),
    shift=st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    warp=warps,
    crop=st.tuples(st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0.4, 0.7), st.floats(0.4, 0.7)),
)


@settings(max_examples=60, deadline=None)
@given(geometries, st.sampled_from([64, 96]), st.sampled_from(sorted(BORDERS)))
def test_both_resamplings_equal_the_definition(geometry: Geometry, size: int, border: str) -> None:
    stored = Stored(130, (15, 0))
    images = film_and_mask(130, 100)
    points = points_of(geometry, size, stored)
    ways = [by_coarse_map(images, coarse_map(geometry, size, stored), size, border)]
    if geometry.warp is None:
        ways.append(by_matrix(images, matrix(geometry, size, stored), size, border))
    label = sampled(images[1], points, border, 0) > 127
    for image, mask in ways:
        # OpenCV interpolates in steps of a 32nd of a pixel.
        assert np.abs(image - sampled(images[0], points, border, 1)).mean() < 1.5
        assert set(np.unique(mask).tolist()) <= {0, 255}
        assert ((mask > 127) != label).mean() < 0.02


def test_beyond_the_film_there_are_zeros_or_its_reflection() -> None:
    images = film_and_mask(64, 64)
    away = Geometry(shift=(0.5, 0.0))
    for way in (
        partial(by_matrix, images, matrix(away, 64, Stored(64)), 64),
        partial(by_coarse_map, images, coarse_map(away, 64, Stored(64)), 64),
    ):
        ways = (way(border) for border in ("constant", "reflect", "reflect_101"))
        for empty, mirrored, mirrored_101, original in zip(*ways, images, strict=True):
            assert not empty[:, :31].any()
            np.testing.assert_array_equal(empty[:, 32:], original[:, :32])
            beyond = ((0, 0), (32, 0))
            np.testing.assert_array_equal(mirrored, np.pad(original, beyond, "symmetric")[:, :64])
            np.testing.assert_array_equal(mirrored_101, np.pad(original, beyond, "reflect")[:, :64])


def test_film_without_a_mask_is_resampled_alone() -> None:
    (image,) = by_matrix(film_and_mask(64, 64)[:1], matrix(Geometry(), 64, Stored(64)), 64, "constant")
    np.testing.assert_array_equal(image, film_and_mask(64, 64)[0])


# -- noise


@pytest.mark.parametrize("size", [64, 512])
def test_noise_field_has_a_deviation_of_one_level_and_no_slope(size: int) -> None:
    window = noise_window(Parameters(noise_origin=(3, 100)), size).astype(float)
    assert window.shape == (size, size)
    assert abs(window.std() / NOISE_LEVEL - 1) < 0.05
    assert abs(window.mean()) < 4 * NOISE_LEVEL / size
    for neighbour in (window[1:, :], window[:, 1:]):
        same = window[: neighbour.shape[0], : neighbour.shape[1]]
        assert abs(np.corrcoef(same.ravel(), neighbour.ravel())[0, 1]) < 5 / size, "white"


def test_every_window_lies_inside_the_field_and_differs_from_others() -> None:
    last = NOISE_OFFSETS - 1
    seen = [noise_window(Parameters(noise_origin=(row, column)), 64) for row in (0, last) for column in (0, last)]
    assert all(window.shape == (64, 64) for window in seen)
    assert len({window.tobytes() for window in seen}) == 4
    np.testing.assert_array_equal(seen[0], noise_window(Parameters(noise_origin=(0, 0)), 64))


@pytest.mark.parametrize("sigma", [0.01, 0.05, -0.05])
def test_noise_on_a_grey_film_has_the_stated_deviation(sigma: float) -> None:
    grey = np.full((256, 256), 128, np.uint8)
    parameters = Parameters(noise_sigma=sigma, noise_origin=(7, 9))
    added = add_noise(grey, parameters).astype(float) - 128
    assert abs(added.std() / (255 * abs(sigma)) - 1) < 0.03
    opposite = add_noise(grey, Parameters(noise_sigma=-sigma, noise_origin=(7, 9))).astype(float) - 128
    np.testing.assert_array_equal(added, -opposite)


def test_noise_saturates_and_leaves_its_input_alone() -> None:
    white = np.full((64, 64), 255, np.uint8)
    noisy = add_noise(white, Parameters(noise_sigma=0.05))
    assert noisy.max() == 255 and 0.4 < (noisy == 255).mean() < 0.6 and noisy.min() > 180
    assert (white == 255).all()


@pytest.mark.parametrize("make", [by_torch, by_dali])
def test_noise_that_reaches_the_network_has_the_stated_deviation_and_is_new_for_each_film_and_epoch(
    films: Shards, make: Callable[[FilmReader, list[FilmRequest]], Batch]
) -> None:
    sigma = 0.04
    augment = AugmentConfig.model_validate({**OFF, "noise": {"p": 1, "sigma": [sigma, sigma]}})
    reader = FilmReader(films, InputSpec(96, 1, PLAIN), with_mask=True, augment=augment, seed=1)
    requests = [FilmRequest(row, epoch, 0) for row in range(4) for epoch in range(3)]
    noisy = make(reader, requests).images[:, 0].numpy()
    clean = make(reader, [FilmRequest(request.index) for request in requests]).images[:, 0].numpy()
    assert not any(
        drawn.noise_sigma for drawn in (reader.parameters(FilmRequest(request.index)) for request in requests)
    )
    amid = (clean > 0.2) & (clean < 0.8)
    added = noisy - clean
    for one, inside in zip(added, amid, strict=True):
        assert inside.sum() > 1000
        assert abs(one[inside].std() / sigma - 1) < 0.06
    for number in range(len(requests)):
        for other in range(number):
            both = amid[number] & amid[other]
            assert abs(np.corrcoef(added[number][both], added[other][both])[0, 1]) < 0.2
    signs = {
        math.copysign(1, draw(augment, 1, s.epoch or 0, str(films.column("key")[s.index])).noise_sigma)
        for s in requests
    }
    assert signs == {1.0, -1.0}
