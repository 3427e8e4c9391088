"""Turns a film and its label into a table row and the members of a WebDataset sample."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.arrays import Image, Mask
from shards.build.duplicates import perceptual_hash
from shards.build.films import SourceFilm
from shards.build.folders import is_image
from shards.build.images import read_image_film, read_image_mask
from shards.build.options import BuildOptions
from shards.dataset import rle
from shards.dataset.grid import Padding, fit_square, mask_to_size, mask_to_square, square_pixels, to_square
from shards.dataset.keys import patient_group
from shards.dicom import film as dicom
from shards.drawing import encode_image
from shards.errors import InputError, RejectedFilm

# Measured by benchmarks/shards.py, against run-length coding. Films take two thirds of its time at the same size. Masks
# are read in a fifth of its time for 4 kB more; a mask is written once and read in every epoch.
_FILM_PNG = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG),
)
_MASK_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)
# No pneumothorax is known that fills more of a film. An inverted mask does.
LARGEST_SHARE = 0.6
NOT_SQUARE = "its pixels are not square: resampled to square ones"
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 97)


@dataclass(frozen=True)
class Sample:
    """A table row (without shard and offsets) and the members as extension -> bytes.

    `reencoded` means that the codec is jpeg, but the film has no JPEG stream that can be kept. `warnings` are stored in
    the json member: other words change the bytes of a tar.
    """

    row: dict[str, Any]
    members: dict[str, bytes]
    warnings: tuple[str, ...]
    reencoded: bool


def build_sample(source: SourceFilm, options: BuildOptions, salt: bytes) -> Sample:
    """Read, label and encode one film.

    Raises RejectedFilm for a film that cannot be read, InputError for a label that does not fit the film.
    """
    film = _read_film(source, options)
    warnings = list(film.warnings)
    mask: Mask | None = None
    label_height, label_width = film.image.shape
    if source.mask_path is not None:
        mask, doubts = read_image_mask(source.mask_path, options.max_pixels)
        warnings.extend(doubts)
        _check_shape(mask, film.image)
        label_height, label_width = mask.shape
    elif options.label_size is not None:
        label_height = label_width = options.label_size
    if source.labels is not None:
        mask = _decode_labels(source, label_height, label_width)
    native = options.codec == "jpeg"
    picture = square_pixels(film.image, film.aspect)
    jpeg = film.jpeg if film.aspect == 1 else None
    if film.aspect != 1:
        warnings.append(NOT_SQUARE)
    height, width = picture.shape
    padding = fit_square(height, width, max(height, width) if native else options.image_size)
    facts = {
        "label_height": label_height,
        "label_width": label_width,
        **{f"pad_{side}": value for side, value in asdict(padding).items()},
        **{k: v for k, v in asdict(film.info).items() if k != "patient_id"},
    }
    area = None if mask is None else cv2.countNonZero(mask)
    label = {
        "has_mask": None if area is None else area > 0,
        "rle": None if mask is None else rle.encode(mask) if area else rle.EMPTY,
    }
    if area is not None and area > LARGEST_SHARE * label_height * label_width:
        warnings.append(f"its mask covers more than {LARGEST_SHARE:.0%} of the film: is it inverted?")
    about = {"key": source.key, "image_id": source.image_id, **label, **facts}
    if warnings and options.strict:
        raise RejectedFilm(f"{'; '.join(warnings)}; a film with a warning is rejected by --strict")
    if warnings:
        about["warnings"] = warnings
    image = (
        (jpeg or encode_image(picture, ".jpg", _JPEG))
        if native
        else encode_image(to_square(picture, options.image_size), ".png", _FILM_PNG)
    )
    members = {"image.jpg" if native else "image.png": image, "json": json.dumps(about, sort_keys=True).encode()}
    if mask is not None:
        size = (height, width) if native else (options.image_size, options.image_size)
        members["mask.png"] = (
            _mask_png(mask, size, None if native else padding) if label["has_mask"] else _empty_mask_png(size)
        )
    row = {
        **{name: value for name, value in about.items() if name != "warnings"},
        # Without a patient id, every film is a separate group.
        "film_group": patient_group(film.info.patient_id or f"film {source.image_id}", salt),
        "perceptual_hash": perceptual_hash(picture).hex(),
        "split": source.split,
        "mask_area": area,
        "image_height": height if native else options.image_size,
        "image_width": width if native else options.image_size,
    }
    return Sample(row, members, tuple(warnings), native and jpeg is None)


def _read_film(source: SourceFilm, options: BuildOptions) -> dicom.Film:
    return read_film_file(source.path, dicom.FilmRules(options.any_film, options.allow_burned_in, options.max_pixels))


def read_film_file(path: Path, rules: dicom.FilmRules) -> dicom.Film:
    """Read a film from a PNG or JPEG file, which its suffix tells, or else from a DICOM file.

    Raises RejectedFilm, with the reason and the fix, for a film that the rules refuse or that cannot be read.
    """
    if not is_image(path):
        return dicom.read_film(path, rules)
    image, warnings = read_image_film(path, rules.max_pixels)
    return dicom.Film(image, dicom.FilmInfo(), warnings)


def _check_shape(mask: Mask, film: Image) -> None:
    (rows, columns), (height, width) = mask.shape, film.shape
    if abs(rows * width - columns * height) > max(height, width):
        raise RejectedFilm(f"its mask is {columns}x{rows}, the film {width}x{height}: their shapes differ")


def _decode_labels(source: SourceFilm, height: int, width: int) -> Mask:
    assert source.labels is not None
    for row in source.labels:
        bounds = rle.parse(row.rle)
        if len(bounds) and bounds[-1, 1] > height * width:
            raise InputError(
                f"{row.path or 'label CSV'} line {row.line} ({source.image_id}): the mask runs to pixel "
                f"{bounds[-1, 1]}, past the end of a {width}x{height} grid; "
                "correct the row, or give the size of the labels' grid with --label-size"
            )
    return rle.decode_union([row.rle for row in source.labels], height, width)


def _mask_png(mask: Mask, size: tuple[int, int], padding: Padding | None) -> bytes:
    stored = mask_to_size(mask, *size) if padding is None else mask_to_square(mask, size[0], padding)
    return encode_image(stored, ".png", _MASK_PNG)


@lru_cache(maxsize=64)
def _empty_mask_png(size: tuple[int, int]) -> bytes:
    """Return an empty mask. Most films have none, and most have the same size."""
    return encode_image(np.zeros(size, np.uint8), ".png", _MASK_PNG)
