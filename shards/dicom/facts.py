"""Facts about a film that are stored with its pixels, and the shape of a pixel."""

import math
import re
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from shards.dicom.rules import text
from shards.dicom.words import known_words

# Ages from 90 identify people, and are pooled under HIPAA's safe harbour.
OLDEST_AGE = 90
_SEXES = frozenset({"M", "F", "O", "MALE", "FEMALE", "OTHER"})
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")
_SQUARE = 0.01
# No detector or scanner has pixels more oblong than this. Such a spacing lost its decimal point or is a placeholder.
_WIDEST = 4.0
NO_SHAPE = "its pixel spacing or aspect ratio is not plausible: taken as square pixels"


@dataclass(frozen=True)
class FilmInfo:
    """Facts about a film. Empty text and None mean unknown; spacing is in mm per pixel."""

    patient_id: str = ""
    view: str = ""
    sex: str = ""
    age: int | None = None
    spacing_row: float | None = None
    spacing_column: float | None = None
    spacing_tag: str = ""


def film_info(dataset: Dataset) -> FilmInfo:
    """Return the facts about a film. An implausible PixelSpacing, such as zeros, is replaced by ImagerPixelSpacing."""
    spacings = ((tag, _pair(dataset.get(tag))) for tag in _SPACINGS)
    tag, spacing = next(((tag, pair) for tag, pair in spacings if pair), ("", None))
    return FilmInfo(
        patient_id=text(dataset, "PatientID"),
        # Both may hold anything. What is not a code could be a name.
        view=known_words(text(dataset, "ViewPosition")),
        sex=sex if (sex := text(dataset, "PatientSex").upper()) in _SEXES else "",
        age=parse_age(text(dataset, "PatientAge")),
        spacing_row=spacing[0] if spacing else None,
        spacing_column=spacing[1] if spacing else None,
        spacing_tag=tag,
    )


def pixel_aspect(dataset: Dataset) -> tuple[float, tuple[str, ...]]:
    """Return height / width of a pixel (PS3.3 C.7.6.3.1.7), exactly 1.0 within one per cent of it, and warnings."""
    tags = [tag for tag in (*_SPACINGS, "NominalScannedPixelSpacing", "PixelAspectRatio") if _numbers(dataset.get(tag))]
    pair = next((pair for tag in tags if (pair := _pair(dataset.get(tag)))), None)
    if pair is None:
        return 1.0, (NO_SHAPE,) if tags else ()
    aspect = pair[0] / pair[1]
    return (1.0 if abs(aspect - 1.0) <= _SQUARE else aspect), ()


def parse_age(text: str) -> int | None:
    """Return whole years of a DICOM age (`038Y`, `11M`, or SIIM's bare `38`), pooled at 90; None if unknown."""
    match = re.fullmatch(r"0*(\d{1,3})([YMWD]?)", text.strip().upper())
    if not match:
        return None
    number = int(match[1])
    years = {"Y": number, "": number, "M": number // 12, "W": number // 52, "D": number // 365}[match[2]]
    return min(years, OLDEST_AGE)


def _pair(value: Any) -> tuple[float, float] | None:
    """Return height and width of a pixel, None for implausible values."""
    numbers = _numbers(value)
    if len(numbers) != 2 or max(numbers) > _WIDEST * min(numbers):
        return None
    return numbers[0], numbers[1]


def _numbers(value: Any) -> tuple[float, ...]:
    """Return two positive numbers, or none for any other value (some writers fill the tag with zeros)."""
    try:
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == 2 and all(math.isfinite(v) and v > 0 for v in numbers) else ()
