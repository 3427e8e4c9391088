"""Reads a DICOM file as an 8-bit grey image, with the few facts that training may use."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from shards.arrays import Image
from shards.caught import caught_warnings
from shards.dicom.complaints import complaints, rle_excess
from shards.dicom.facts import FilmInfo, film_info, parse_age, pixel_aspect
from shards.dicom.frame import layout_of, longer_rle
from shards.dicom.grey import to_grey8
from shards.dicom.jpeg import strip_jpeg_metadata
from shards.dicom.pixels import GREY, read_pixels
from shards.dicom.read import held_dataset, one_line, read_dataset
from shards.dicom.rules import FilmRules, check_side, screen
from shards.errors import RejectedFilm

__all__ = [
    "SUFFIXES",
    "Film",
    "FilmInfo",
    "FilmRules",
    "film_of",
    "parse_age",
    "read_film",
    "strip_jpeg_metadata",
]

SUFFIXES = frozenset({".dcm", ".dicom"})
_DEFAULT_RULES = FilmRules()


@dataclass(frozen=True)
class Film:
    """A decoded film: `image` (height, width) on the grid of the file, dark = air.

    `warnings` say what its tags leave open and what was corrected. `jpeg` is the file's baseline stream without APPn
    and COM segments, if decoding it gives `image` (8-bit grey, one frame, no lookup, window, inversion or padding),
    else None. `aspect` is height / width of a pixel.
    """

    image: Image
    info: FilmInfo
    warnings: tuple[str, ...] = ()
    jpeg: bytes | None = None
    aspect: float = 1.0


def read_film(path: Path, rules: FilmRules = _DEFAULT_RULES) -> Film:
    """Decode a DICOM film to 8 bits by its modality LUT, VOI LUT or window, and photometric interpretation.

    Raises RejectedFilm, with the reason and the fix, for a film that the rules refuse or that cannot be read.
    """
    return _decoded(lambda: read_dataset(path, rules.max_pixels), rules)


def film_of(dataset: Dataset, rules: FilmRules = _DEFAULT_RULES) -> Film:
    """Decode a film that pydicom has read, as `read_film` does. The data set is not changed.

    One without a transfer syntax holds plain pixels, as a data set made in Python does.
    """
    return _decoded(lambda: held_dataset(dataset), rules)


def _decoded(read: Callable[[], Dataset], rules: FilmRules) -> Film:
    with caught_warnings() as caught:
        try:
            return _film(read(), rules, caught)
        except RejectedFilm:
            raise
        except Exception as error:  # pydicom parses values on access, and damaged ones raise errors of any kind
            raise RejectedFilm(
                f"damaged DICOM data ({type(error).__name__}: {one_line(error)}); export it again"
            ) from None


def _film(dataset: Dataset, rules: FilmRules, caught: list[warnings.WarningMessage]) -> Film:
    open_points = screen(dataset, rules)
    layout = layout_of(dataset, rules)
    pixels = read_pixels(dataset, layout)
    if rle_excess(caught) > 1:
        raise RejectedFilm(longer_rle(layout))
    check_side(layout.rows, layout.columns, rules)  # only now is this known to be the size of the image
    try:
        # Windows and lookups are defined for grey pixels only.
        image, unchanged, corrected = to_grey8(pixels.values, dataset if pixels.photometric in GREY else Dataset())
    except RejectedFilm:
        raise
    except Exception as error:  # damaged lookup tables raise IndexError, KeyError, TypeError …
        raise RejectedFilm(
            f"its grey-level lookup cannot be applied ({type(error).__name__}: {one_line(error)}); export it again"
        ) from None
    info = film_info(dataset)
    aspect, implausible = pixel_aspect(dataset)
    all_warnings = (*open_points, *pixels.warnings, *corrected, *implausible, *complaints(caught))
    return Film(image, info, all_warnings, pixels.jpeg if unchanged else None, aspect)
