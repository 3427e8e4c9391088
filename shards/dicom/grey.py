"""Stored pixel values become 8 bits of grey: modality LUT, VOI LUT or window, polarity, padding.

pydicom's own functions are not used for the lookups: its VOI LUT of 8-bit entries wraps indices above 255, its
modality LUT overflows on signed pixels, and none of them inverts MONOCHROME1.
"""

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from shards.arrays import Booleans, Floats, Image, Integers, Numbers
from shards.errors import RejectedFilm

_LUMA = np.array([0.299, 0.587, 0.114])
# Beyond every lookup table's reach, and still exact as a whole number.
_FAR = 2.0**40
# A window is a placeholder, or that of other data, where a film of so many values has less than this share of the
# pixels between its extremes left grey, or less than this range of greys and a fourth of that without the window.
_MANY_VALUES, _FEWEST_GREY, _SHORTEST_RANGE, _FOURTH = 32, 0.05, 20, 4
PLACEHOLDER = "its window or lookup table leaves hardly any greys: taken without it"


def luma(rgb: Numbers) -> Numbers:
    """Return the Rec. 601 luma (height, width) of colours (height, width, 3), rounded, in the colours' type."""
    return np.asarray(np.rint(rgb @ _LUMA), rgb.dtype)


def to_grey8(pixels: Numbers, dataset: Dataset) -> tuple[Image, bool, tuple[str, ...]]:
    """Turn stored values (height, width) into uint8 as displayed, dark = air; tell whether none was changed, and warn.

    Without a window or lookup, 8-bit pixels are kept and deeper ones span their own range. Padding becomes 0. Raises
    RejectedFilm for an image of one value, and whatever a damaged lookup leads to (ValueError, TypeError, IndexError).
    """
    stored, index = _distinct(pixels)
    padding = _padding(stored, dataset)
    values, is_plain = _modality(stored, dataset)
    is_inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"

    def shown(unit: Floats) -> tuple[Image, bool]:
        table = np.rint(np.where(padding, 0.0, 1.0 - unit if is_inverted else unit) * 255.0).astype(np.uint8)
        unchanged = pixels.dtype == np.uint8 and np.array_equal(table, stored)
        return (np.asarray(pixels, np.uint8) if unchanged else table[index]), unchanged

    def whole_range() -> Floats:
        most = _byte_range(pixels, dataset) if is_plain else None
        return _whole_range(values, ~padding, index, most)

    unit = _voi(values, dataset)
    image, unchanged = shown(whole_range() if unit is None else unit)
    if image.min() == image.max():
        raise RejectedFilm("all pixels have one value once its window or lookup is applied; export it again")
    if unit is not None and _has_few_greys(image, index, padding):
        whole, is_whole = shown(whole_range())
        if np.ptp(image) >= _SHORTEST_RANGE or np.ptp(whole) >= _FOURTH * np.ptp(image):
            return whole, is_whole, (PLACEHOLDER,)
    return image, unchanged, ()


def _distinct(pixels: Numbers) -> tuple[Integers, Numbers]:
    """Return all values that pixels may hold, ascending, and each pixel's index into them.

    Lookups then run on at most 65,536 values, not on millions of pixels.
    """
    if pixels.dtype == np.uint8:
        return np.arange(256), pixels
    if pixels.dtype.itemsize > 2:
        values, index = np.unique(pixels, return_inverse=True)
        return values.astype(np.int64), index.reshape(pixels.shape)
    low, high = int(pixels.min()), int(pixels.max())
    wide: npt.NDArray[Any] = pixels.astype(np.int32) if pixels.dtype.kind == "i" else pixels
    return np.arange(low, high + 1), wide - wide.dtype.type(low)


def _padding(stored: Integers, dataset: Dataset) -> Booleans:
    """Return which stored values fill the area outside the exposed field."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted(_as_stored(int(v), dataset) for v in (value, value if limit is None else limit))
    return (stored >= ends[0]) & (stored <= ends[1])


def _as_stored(value: int, dataset: Dataset) -> int:
    """Return a US or SS value in the sign of the pixels: many writers take the wrong one of the two."""
    span = 1 << int(dataset.BitsAllocated)
    lowest = -span // 2 if int(dataset.PixelRepresentation) == 1 else 0
    return (value - lowest) % span + lowest


def _voi(values: Floats, dataset: Dataset) -> Floats | None:
    """Return the displayed grey, 0 to 1 before polarity, of each value by a VOI LUT or window; None without one.

    0 and 1 are where the window or table sends the extremes, not what this film happens to reach, so that MONOCHROME1
    can be inverted within them.
    """
    if dataset.get("VOILUTSequence"):
        whole = np.rint(np.clip(values, -_FAR, _FAR)).astype(np.int64)
        looked_up, table = _look_up(whole, dataset.VOILUTSequence[0], dataset)
        return _stretch(looked_up, table)
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None:
        return None
    return _window(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR").upper())


def _whole_range(values: Floats, counted: Booleans, index: Numbers, most: int | None) -> Floats:
    """Return values from 0 to `most` as 0 to 1; without it the range of those present and counted: padding is not."""
    if most is not None:
        return np.clip(values / most, 0.0, 1.0)
    return _stretch(values, values[_present(index, len(values)) & counted])


def _byte_range(pixels: Numbers, dataset: Dataset) -> int | None:
    """Return the largest value that 8-bit pixels may have (PS3.3 C.7.6.3: Bits Stored), None for deeper ones."""
    return (1 << min(8, int(dataset.get("BitsStored") or 8))) - 1 if pixels.dtype == np.uint8 else None


def _present(index: Numbers, count: int) -> Booleans:
    present = np.zeros(count, bool)
    present[index] = True
    return present


def _has_few_greys(image: Image, index: Numbers, padding: Booleans) -> bool:
    """Tell whether a film of many values is shown in few greys; collimated borders are black and white by right."""
    counts = cv2.calcHist([image], [0], None, [256], [0, 256])
    greys = counts[1:255].sum()
    span = np.ptp(np.flatnonzero(counts))
    if greys >= _FEWEST_GREY * image.size and span >= _SHORTEST_RANGE:
        return False
    stored = np.bincount(index.ravel(), minlength=len(padding))
    seen = np.flatnonzero((stored > 0) & ~padding)
    between = stored[seen[1:-1]].sum()
    return len(seen) >= _MANY_VALUES and bool(greys < _FEWEST_GREY * between or span < _SHORTEST_RANGE)


def _modality(stored: Integers, dataset: Dataset) -> tuple[Floats, bool]:
    """Return values after the modality LUT or rescale, and whether there was none."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(stored, dataset.ModalityLUTSequence[0], dataset)[0], False
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    return np.asarray(stored * slope + intercept, np.float64), slope == 1 and intercept == 0


def _look_up(values: Integers, item: Dataset, dataset: Dataset) -> tuple[Floats, Floats]:
    """Return values after a LUT item (PS3.3 C.11.1.1), and its table; values outside it take its first or last entry.

    Raises ValueError, TypeError or AttributeError for an item that is not a whole table.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 1 << 16
    if first >= 1 << 15 and values.min() < 0:  # a signed first value, written or read as US
        first -= 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        words = np.frombuffer(data, f"{order}u2").astype(np.int64)
    else:
        words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if bits <= 8 and words.size < count:  # two entries to a word
        words = np.stack([words & 0xFF, words >> 8], axis=1).ravel()
    if words.size < count:
        raise ValueError(f"a lookup table of {count} entries holds {words.size}")
    table = words[:count].astype(np.float64)
    return table[np.clip(values - first, 0, count - 1)], table


def _window(values: Floats, center: float, width: float, function: str) -> Floats:
    """Return values through a window: PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (_EXACT)."""
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"a {function} window of width {width:g}")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - center) / width)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    elif function != "LINEAR_EXACT":
        raise ValueError(f"a VOI LUT function called {function}")
    if width == 0:
        return np.asarray(values > center, np.float64)
    return np.asarray(np.clip((values - (center - width / 2)) / width, 0.0, 1.0))


def _stretch(values: Floats, shown: Floats) -> Floats:
    """Return values on a scale where the smallest and largest of those shown are 0 and 1."""
    if not shown.size or not shown.max() > shown.min():
        raise RejectedFilm("all pixels have one value; export it again")
    return np.asarray(np.clip((values - shown.min()) / (shown.max() - shown.min()), 0.0, 1.0))


def _number(dataset: Dataset, keyword: str) -> float | None:
    """Return an element's number, the first of several (the first window is the default view), None where empty."""
    value = dataset.get(keyword)
    if value is not None and not isinstance(value, str | int | float):  # DS and IS values are str, float or int
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{keyword} is {number}")
    return number
