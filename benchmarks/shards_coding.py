"""Measure PNG settings and run-length strings: part of `benchmarks.shards`."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pydicom

from benchmarks.common import Report, label_file, median_seconds
from shards.build import sample
from shards.build.labels import load_labels
from shards.dataset import rle
from shards.dicom.film import read_film

Image = npt.NDArray[np.uint8]
Parameters = tuple[int, ...]
# Run-length strings of a film, and height and width of their grid.
Mask = tuple[list[str], tuple[int, int]]

_LEVEL, _STRATEGY, _FILTER = cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_FILTER
_RLE, _HUFFMAN = cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY
_FILTERS = {
    "none": cv2.IMWRITE_PNG_FILTER_NONE,
    "sub": cv2.IMWRITE_PNG_FILTER_SUB,
    "up": cv2.IMWRITE_PNG_FILTER_UP,
    "avg": cv2.IMWRITE_PNG_FILTER_AVG,
    "paeth": cv2.IMWRITE_PNG_FILTER_PAETH,
    "fast": cv2.IMWRITE_PNG_FAST_FILTERS,
    "all": cv2.IMWRITE_PNG_ALL_FILTERS,
}
SETTINGS: dict[str, Parameters] = {
    "chosen for films": tuple(sample._FILM_PNG),
    "chosen for masks": tuple(sample._MASK_PNG),
    "OpenCV default": (),
    **{f"level {level}, all filters": (_LEVEL, level) for level in (1, 3, 6)},
    **{
        f"level {level}, filter {name}": (_LEVEL, level, _FILTER, _FILTERS[name])
        for level in (1, 2)
        for name in ("none", "up", "avg", "fast")
    },
    **{f"RLE, filter {name}": (_STRATEGY, _RLE, _FILTER, value) for name, value in _FILTERS.items()},
    **{f"Huffman, filter {name}": (_STRATEGY, _HUFFMAN, _FILTER, _FILTERS[name]) for name in ("up", "avg", "paeth")},
}


# --- PNG settings


def measure_png(report: Report, films: Path, real: Path | None) -> None:
    """Print time and size of OpenCV's PNG settings, for films and for masks."""
    sets = {"synthetic": _images(films, 12)}
    if real is not None:
        sets["real"] = _images(real, 12)
    sets["masks"] = [rle.decode_union(texts, *shape) * np.uint8(255) for texts, shape in _masks(real or films)[:12]]
    report.title("PNG settings: encode / decode, bytes (medians, mean size)")
    print(f"  {'':<24}" + "".join(f"{name:>30}" for name in sets))
    for name, parameters in SETTINGS.items():
        cells = []
        for images in sets.values():
            coded = [cv2.imencode(".png", image, parameters)[1] for image in images]
            write = [median_seconds(partial(cv2.imencode, ".png", image, parameters), 3) for image in images]
            read = [median_seconds(partial(cv2.imdecode, content, cv2.IMREAD_GRAYSCALE), 3) for content in coded]
            size = statistics.mean(content.size for content in coded)
            cells.append(f"{_milli(write):5.1f} /{_milli(read):4.1f} ms {size / 1e3:7.1f} kB")
        print(f"  {name:<24}" + "".join(f"{cell:>30}" for cell in cells), flush=True)


def _images(films: Path, most: int) -> list[Image]:
    return [read_film(path).image for path in sorted(films.rglob("*.dcm"))[:most]]


def _masks(films: Path) -> list[Mask]:
    """Return the run-length strings and the grid of each labelled film, positive films first."""
    path = next(films.rglob("*.dcm"))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    shape = (int(header.Rows), int(header.Columns))
    strings = [[row.rle for row in rows] for rows in load_labels(label_file(films)).values()]
    return [(texts, shape) for texts in sorted(strings, key=lambda texts: texts[0] == rle.EMPTY)]


# --- run-length strings


def measure_rle(report: Report, films: Path, kind: str) -> None:
    """Compare decoding and encoding of run-length strings with pure-Python loops, on masks that are not empty."""
    masks = [(texts, shape) for texts, shape in _masks(films) if texts[0] != rle.EMPTY][:12]
    ours, loops = _rle_times(masks, rle.decode_union, rle.encode), _rle_times(masks, _loop_union, loop_encode)
    height, width = masks[0][1]
    report.title(f"Run-length strings, one core, {len(masks)} {kind} {height}x{width} masks")
    for name, mine, loop, most in zip(("decode", "encode"), ours, loops, (1.0, 3.0), strict=True):
        report.row(f"{name} a mask", f"{mine:.2f} ms", f"< {most:g} ms", mine < most)
        report.row(f"{name}, pure-Python loop", f"{loop:.1f} ms ({loop / mine:.0f} x)")
    empty = np.zeros((height, width), np.uint8)
    decode = median_seconds(lambda: rle.decode(rle.EMPTY, height, width), 15)
    encode = median_seconds(lambda: rle.encode(empty), 15)
    report.row("empty mask, decode and encode", f"{decode * 1e3:.3f}, {encode * 1e3:.3f} ms")


def _rle_times(
    masks: Iterable[Mask],
    decode: Callable[..., npt.NDArray[np.generic]],
    encode: Callable[[npt.NDArray[np.generic]], str],
) -> tuple[float, float]:
    decoding, encoding = [], []
    for texts, shape in masks:
        mask = decode(texts, *shape)
        assert encode(mask) == rle.encode(mask)
        decoding.append(median_seconds(partial(decode, texts, *shape), 5))
        encoding.append(median_seconds(partial(encode, mask), 3))
    return _milli(decoding), _milli(encoding)


def _milli(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


def mask_by_runs(text: str, height: int, width: int) -> npt.NDArray[np.float64]:
    """Decode a string run by run; return its mask of 0 and 255."""
    flat = np.zeros(height * width)
    for start, end in _bounds(text):
        flat[start:end] = 255
    return flat.reshape(width, height).T


def loop_decode(text: str, height: int, width: int) -> npt.NDArray[np.float64]:
    """Decode a string pixel by pixel; return its mask of 0 and 255."""
    flat = [0] * (height * width)
    for start, end in _bounds(text):
        for pixel in range(start, end):
            flat[pixel] = 255
    return np.array(flat, np.float64).reshape(width, height).T


def _bounds(text: str) -> list[tuple[int, int]]:
    numbers = [int(number) for number in text.split()]
    bounds, position = [], 0
    for skip, length in zip(numbers[0::2], numbers[1::2], strict=True):
        bounds.append((position + skip, position + skip + length))
        position += skip + length
    return bounds


def _loop_union(texts: Sequence[str], height: int, width: int) -> npt.NDArray[np.float64]:
    mask = loop_decode(texts[0], height, width)
    for text in texts[1:]:
        mask = np.maximum(mask, loop_decode(text, height, width))
    return mask


def loop_encode(mask: npt.NDArray[np.generic]) -> str:
    """Encode a mask pixel by pixel."""
    numbers: list[int] = []
    gap = run = 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row][column]:
                run += 1
            elif run:
                numbers += [gap, run]
                gap, run = 1, 0
            else:
                gap += 1
    if run:
        numbers += [gap, run]
    return " ".join(map(str, numbers)) or rle.EMPTY
