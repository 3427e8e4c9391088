"""The single resampling of image and mask on the CPU, with OpenCV, and the noise added after it."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pneumo_dist.data.augment import NOISE_OFFSETS, Parameters
from pneumo_dist.data.geometry import CoarseMap, Matrix, dense_map

Image = npt.NDArray[np.uint8]

LINEAR, NEAREST = cv2.INTER_LINEAR, cv2.INTER_NEAREST
# Of an image and its mask.
_INTERPOLATIONS = (LINEAR, NEAREST)
BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "reflect": cv2.BORDER_REFLECT,
    "reflect_101": cv2.BORDER_REFLECT_101,
}
# Levels of a noise byte per standard deviation, so that four deviations fit.
NOISE_LEVEL = 32
# All runs share one field. A draw is one of 32,768: a window of the field or of its negative.
_NOISE_SEED = 2019


def by_matrix(
    images: tuple[Image, ...],
    corner: Matrix,
    size: int,
    border: str,
    interpolations: Sequence[int] = _INTERPOLATIONS,
) -> tuple[Image, ...]:
    """Resample an image (height, width) and, if given, its mask at the points of a 2x3 map, each to (size, size).

    By default the image is interpolated linearly, and the mask takes the nearest pixel.
    """
    centred = np.array(corner, np.float64)  # OpenCV counts from the first pixel's centre
    centred[:, 2] += centred[:, :2].sum(axis=1) * 0.5 - 0.5
    border_mode = BORDERS[border]
    return tuple(
        np.asarray(
            cv2.warpAffine(image, centred, (size, size), flags=mode | cv2.WARP_INVERSE_MAP, borderMode=border_mode),
            np.uint8,
        )
        for image, mode in zip(images, interpolations, strict=False)
    )


def by_coarse_map(
    images: tuple[Image, ...],
    coarse_map: CoarseMap,
    size: int,
    border: str,
    interpolations: Sequence[int] = _INTERPOLATIONS,
) -> tuple[Image, ...]:
    """Resample as `by_matrix`, at the points of a coarse map."""
    x, y = (np.ascontiguousarray(axis) for axis in np.moveaxis(dense_map(coarse_map, size) - np.float32(0.5), -1, 0))
    return tuple(
        np.asarray(cv2.remap(image, x, y, mode, borderMode=BORDERS[border]), np.uint8)
        for image, mode in zip(images, interpolations, strict=False)
    )


def add_noise(image: Image, parameters: Parameters) -> Image:
    """Return an image (size, size) with the film's noise added."""
    if parameters.noise_sigma == 0.0:
        return image
    noise = noise_window(parameters, len(image)) * np.float32(parameters.noise_sigma * 255.0 / NOISE_LEVEL)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def noise_window(parameters: Parameters, size: int) -> npt.NDArray[np.int8]:
    """Return a film's noise, int8 (size, size), in units of 1/NOISE_LEVEL standard deviations."""
    row, column = parameters.noise_origin
    return _noise_field(size)[row : row + size, column : column + size]


@lru_cache(maxsize=2)
def _noise_field(size: int) -> npt.NDArray[np.int8]:
    side = size + NOISE_OFFSETS
    noise = np.random.default_rng(_NOISE_SEED).standard_normal((side, side), np.float32)
    field = np.clip(np.rint(noise * NOISE_LEVEL), -128, 127).astype(np.int8)
    field.flags.writeable = False
    return field
