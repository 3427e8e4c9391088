"""The one resampling of image and mask on the CPU, by OpenCV; and the noise that is added after it."""

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pneumo_dist.data.augment import NOISE_OFFSETS, Parameters
from pneumo_dist.data.geometry import CoarseMap, Matrix, dense_map

Image = npt.NDArray[np.uint8]

_HOW = (cv2.INTER_LINEAR, cv2.INTER_NEAREST)
BORDERS = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT}
# Noise is stored in bytes of which this many are one standard deviation: four deviations fit.
NOISE_LEVEL = 32
# One field serves all runs; each draw is one of 32,768 windows of it and of its negative.
_NOISE_SEED = 2019


def by_matrix(images: tuple[Image, ...], corner: Matrix, size: int, border: str) -> tuple[Image, ...]:
    """Return an image (height, width) and, after it, its mask at the points that a 2x3 map gives, each (size, size).

    The image is interpolated linearly, the mask takes the nearest pixel.
    """
    centred = np.array(corner, np.float64)  # OpenCV counts from the first pixel's centre
    centred[:, 2] += centred[:, :2].sum(axis=1) * 0.5 - 0.5
    mode = BORDERS[border]
    return tuple(
        np.asarray(
            cv2.warpAffine(image, centred, (size, size), flags=how | cv2.WARP_INVERSE_MAP, borderMode=mode), np.uint8
        )
        for image, how in zip(images, _HOW, strict=False)
    )


def by_coarse_map(images: tuple[Image, ...], coarse_map: CoarseMap, size: int, border: str) -> tuple[Image, ...]:
    """Return the same for the points of a coarse map, interpolated to every pixel."""
    x, y = (np.ascontiguousarray(axis) for axis in np.moveaxis(dense_map(coarse_map, size) - np.float32(0.5), -1, 0))
    return tuple(
        np.asarray(cv2.remap(image, x, y, how, borderMode=BORDERS[border]), np.uint8)
        for image, how in zip(images, _HOW, strict=False)
    )


def add_noise(image: Image, parameters: Parameters) -> Image:
    """Return an image (size, size) with the noise of a film."""
    if parameters.noise_sigma == 0.0:
        return image
    noise = noise_window(parameters, len(image)) * np.float32(parameters.noise_sigma * 255.0 / NOISE_LEVEL)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def noise_window(parameters: Parameters, size: int) -> npt.NDArray[np.int8]:
    """Return the noise of a film, int8 (size, size); NOISE_LEVEL is one standard deviation."""
    row, column = parameters.noise_origin
    return _noise_field(size)[row : row + size, column : column + size]


@lru_cache(maxsize=2)
def _noise_field(size: int) -> npt.NDArray[np.int8]:
    side = size + NOISE_OFFSETS
    noise = np.random.default_rng(_NOISE_SEED).standard_normal((side, side), np.float32)
    field = np.clip(np.rint(noise * NOISE_LEVEL), -128, 127).astype(np.int8)
    field.flags.writeable = False
    return field
