"""Geometry of films: their own grid, and the stored square image."""

from dataclasses import astuple, dataclass

import cv2
import numpy as np

from shards.arrays import Image


@dataclass(frozen=True)
class Padding:
    """Rows and columns that pad a film to a square, in pixels of that square."""

    top: int
    bottom: int
    left: int
    right: int


def fit_square(height: int, width: int, size: int) -> Padding:
    """Return the padding that centres a film in a square of `size` pixels and keeps its aspect ratio."""
    longest = max(height, width)
    rows = max(1, round(height * size / longest))
    columns = max(1, round(width * size / longest))
    top, left = (size - rows) // 2, (size - columns) // 2
    return Padding(top, size - rows - top, left, size - columns - left)


def square_pixels(image: Image, aspect: float) -> Image:
    """Resample an image whose pixels are `aspect` times as high as wide to square pixels, by enlarging one side."""
    if aspect == 1:
        return image
    height, width = image.shape
    size = (max(1, round(width * max(1.0, 1 / aspect))), max(1, round(height * max(1.0, aspect))))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def to_square(image: Image, size: int, padding: Padding | None = None) -> Image:
    """Resize an image (height, width) into a square (size, size), padded with 0.

    It is shrunk by area averaging or enlarged by cubic interpolation. `padding` defaults to that of `fit_square`.
    """
    height, width = image.shape
    padding = padding or fit_square(height, width, size)
    rows, columns = size - padding.top - padding.bottom, size - padding.left - padding.right
    if (rows, columns) != (height, width):
        shrinks = rows <= height and columns <= width
        image = np.asarray(
            cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8
        )
    if (rows, columns) == (size, size):
        return image
    sides = (padding.top, padding.bottom, padding.left, padding.right)
    return np.asarray(cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=0), np.uint8)


def mask_to_square(mask: Image, size: int, film: Padding) -> Image:
    """Resize a mask into a square (size, size) of 0 and 255, by area averaging and a threshold of one half.

    `film` is the padding of the mask's film in that square.
    """
    own = fit_square(mask.shape[0], mask.shape[1], size)
    difference = max(abs(a - b) for a, b in zip(astuple(own), astuple(film), strict=True))
    # One pixel is rounding, as in existing datasets. More means a label grid with another aspect ratio.
    return _binarised(to_square(mask * np.uint8(255), size, own if difference <= 1 else film))


def mask_to_size(mask: Image, height: int, width: int) -> Image:
    """Resize a mask to (height, width) of 0 and 255, by area averaging and a threshold of one half."""
    if mask.shape == (height, width):
        return mask * np.uint8(255)
    resized = cv2.resize(mask * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA)
    return _binarised(np.asarray(resized, np.uint8))


def _binarised(mask: Image) -> Image:
    return np.asarray(cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)


def content_box(padding: Padding, stored: int, size: int) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of the film inside a (size, size) map, end-exclusive.

    `padding` counts pixels of a square of `stored` pixels; at another size its edges are scaled and rounded.
    """
    scale = size / stored
    top, left = round(padding.top * scale), round(padding.left * scale)
    bottom, right = size - round(padding.bottom * scale), size - round(padding.right * scale)
    return top, max(bottom, top + 1), left, max(right, left + 1)
