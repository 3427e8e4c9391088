"""One film and its label become a table row and the members of a WebDataset sample."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from shards.build.duplicates import perceptual_hash
from shards.build.options import BuildOptions
from shards.build.sources import Source
from shards.dataset import rle
from shards.dataset.grid import fit_square, mask_to_size, mask_to_square, to_square
from shards.dataset.keys import patient_group
from shards.dicom import film as dicom
from shards.drawing import encode
from shards.errors import InputError, RejectedFilm

# Measured by benchmarks/shards.py. Films: two thirds of the time of run-length coding at the same size. Masks: read in
# a fifth of the time of run-length coding, for 4 kB more; a mask is written once and read in every epoch.
_FILM_PNG = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG),
)
_MASK_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 97)


@dataclass(frozen=True)
class Sample:
    """A table row (without shard and offsets) and the members as extension -> bytes.

    `reencoded`: the codec is jpeg and the film had no stream of its own that could be taken over.
    """

    row: dict[str, Any]
    members: dict[str, bytes]
    warnings: tuple[str, ...]
    reencoded: bool


def build_sample(source: Source, options: BuildOptions, salt: bytes) -> Sample:
    """Read, label and encode one film.

    Raises RejectedFilm for a film that cannot be read, InputError for a label that does not fit it.
    """
    film = _read_film(source, options)
    height, width = film.image.shape
    mask: npt.NDArray[np.uint8] | None = None
    label_height, label_width = height, width
    if source.mask_path is not None:
        mask = _read_mask(source.mask_path)
        label_height, label_width = mask.shape
        if abs(label_height * width - label_width * height) > max(height, width):
            raise RejectedFilm(f"its mask is {label_width}x{label_height}, the film {width}x{height}: not one shape")
    elif options.label_size is not None:
        label_height = label_width = options.label_size
    if source.labels is not None:
        mask = _decode_labels(source, label_height, label_width)
    native = options.codec == "jpeg"
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
    about = {"key": source.key, "image_id": source.image_id, **label, **facts}
    image = (
        (film.jpeg or encode(film.image, ".jpg", _JPEG))
        if native
        else encode(to_square(film.image, options.image_size), ".png", _FILM_PNG)
    )
    members = {"image.jpg" if native else "image.png": image, "json": json.dumps(about, sort_keys=True).encode()}
    if mask is not None:
        size = (height, width) if native else (options.image_size, options.image_size)
        members["mask.png"] = _mask_png(mask, size, native) if label["has_mask"] else _empty_mask_png(size)
    row = {
        **about,
        # Without a patient id every film is a group of its own.
        "film_group": patient_group(film.info.patient_id or f"film {source.image_id}", salt),
        "perceptual_hash": perceptual_hash(film.image).hex(),
        "split": source.split,
        "mask_area": area,
        "image_height": height if native else options.image_size,
        "image_width": width if native else options.image_size,
    }
    return Sample(row, members, film.warnings, native and film.jpeg is None)


def _read_film(source: Source, options: BuildOptions) -> dicom.Film:
    if source.is_dicom:
        return dicom.read_film(source.path, dicom.FilmRules(options.any_film, options.allow_burned_in))
    return dicom.Film(_read_grey(source.path), dicom.FilmInfo())


def _decode_labels(source: Source, height: int, width: int) -> npt.NDArray[np.uint8]:
    assert source.labels is not None
    for row in source.labels:
        bounds = rle.parse(row.rle)
        if len(bounds) and bounds[-1, 1] > height * width:
            raise InputError(
                f"{row.path or 'label CSV'} line {row.line} ({source.image_id}): the mask runs to pixel "
                f"{bounds[-1, 1]}, past the end of a {width}x{height} grid; "
                "correct the row, or give the labels' grid with --label-size"
            )
    return rle.decode_union([row.rle for row in source.labels], height, width)


def _read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Return a 0/1 mask: files hold 0 and 1, or 0 and 255 with grey edges (set from 128 on)."""
    values = _read_grey(path)
    brightest = int(values.max())
    if 1 < brightest < 128:
        raise RejectedFilm(f"its mask {path.name} has a largest value of {brightest}; masks hold 0 and 1, or 0 and 255")
    return (values >= (1 if brightest == 1 else 128)).astype(np.uint8)


def _read_grey(path: Path) -> npt.NDArray[np.uint8]:
    try:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error) as error:
        raise RejectedFilm(f"unreadable image ({error})") from None
    if image is None:
        raise RejectedFilm("not a readable PNG or JPEG image")
    return np.asarray(image, np.uint8)


def _mask_png(mask: npt.NDArray[np.uint8], size: tuple[int, int], native: bool) -> bytes:
    stored = mask_to_size(mask, *size) if native else mask_to_square(mask, size[0])
    return encode(stored, ".png", _MASK_PNG)


@lru_cache(maxsize=64)
def _empty_mask_png(size: tuple[int, int]) -> bytes:
    """Most films have no mask, and most of them have one size."""
    return encode(np.zeros(size, np.uint8), ".png", _MASK_PNG)
