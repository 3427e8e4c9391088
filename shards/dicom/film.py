"""A DICOM file becomes an 8-bit grey image and the few facts that training may know."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from shards.arrays import Image
from shards.dicom.complaints import complaints, rle_excess
from shards.dicom.facts import FilmInfo, film_info, parse_age, pixel_aspect
from shards.dicom.frame import layout_of, longer_rle
from shards.dicom.grey import to_grey8
from shards.dicom.jpeg import strip_jpeg_metadata
from shards.dicom.pixels import GREY, read_pixels
from shards.dicom.read import one_line, read_dataset
from shards.dicom.rules import FilmRules, check_side, screen
from shards.errors import RejectedFilm

__all__ = ["SUFFIXES", "Film", "FilmInfo", "FilmRules", "parse_age", "read_film", "strip_jpeg_metadata"]

SUFFIXES = frozenset({".dcm", ".dicom"})
_DEFAULT_RULES = FilmRules()


@dataclass(frozen=True)
class Film:
    """A decoded film: `image` is uint8 of shape (height, width), dark = air, on the file's own grid.

    `warnings` tell what its tags leave open and what was corrected. `jpeg` is the file's own baseline stream without
    APPn and COM segments where decoding that gives `image` (8-bit grey, one frame, no lookup, window, inversion or
    padding), else None. `aspect` is the height of a pixel by its width.
    """

    image: Image
    info: FilmInfo
    warnings: tuple[str, ...] = ()
    jpeg: bytes | None = None
    aspect: float = 1.0


def read_film(path: Path, rules: FilmRules = _DEFAULT_RULES) -> Film:
    """Decode one DICOM film to 8 bits by its modality LUT, VOI LUT or window and photometric interpretation.

    Raises RejectedFilm, with a reason that a person can act on, for what the rules refuse or cannot be read.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return _film(read_dataset(path, rules.max_pixels), rules, caught)
        except RejectedFilm:
            raise
        except (
            Exception
        ) as error:  # pydicom parses values when they are asked for and raises what a damaged one leads to
            raise RejectedFilm(
                f"damaged DICOM data ({type(error).__name__}: {one_line(error)}); export it again"
            ) from None


def _film(dataset: Dataset, rules: FilmRules, caught: list[warnings.WarningMessage]) -> Film:
    open_points = screen(dataset, rules)
    layout = layout_of(dataset, rules)
    pixels = read_pixels(dataset, layout)
    if rle_excess(caught) > 1:
        raise RejectedFilm(longer_rle(layout))
    check_side(layout.rows, layout.columns, rules)  # now that this is the size of its picture
    try:
        # Windows and lookups are defined for grey pixels only.
        image, unchanged, corrected = to_grey8(pixels.values, dataset if pixels.photometric in GREY else Dataset())
    except RejectedFilm:
        raise
    except Exception as error:  # damaged lookup tables surface as IndexError, KeyError, TypeError …
        raise RejectedFilm(
            f"its grey-level lookup cannot be applied ({type(error).__name__}: {one_line(error)}); export it again"
        ) from None
    info = film_info(dataset)
    aspect, implausible = pixel_aspect(dataset)
    found = (*open_points, *pixels.warnings, *corrected, *implausible, *complaints(caught))
    return Film(image, info, found, pixels.jpeg if unchanged else None, aspect)
