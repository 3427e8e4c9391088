"""A DICOM file becomes an 8-bit grey image and the few facts that training may know."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space

from shards.errors import RejectedFilm

SUFFIXES = frozenset({".dcm", ".dicom"})
GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
# Ages from 90 identify people; HIPAA's safe harbour pools them.
OLDEST_AGE = 90


@dataclass(frozen=True)
class FilmInfo:
    """What is kept of a film besides its pixels. Empty text and None mean unknown; spacing is in mm per pixel."""

    patient_id: str = ""
    view: str = ""
    sex: str = ""
    age: int | None = None
    spacing_row: float | None = None
    spacing_column: float | None = None
    spacing_tag: str = ""


@dataclass(frozen=True)
class Film:
    """A decoded film: `image` is uint8 of shape (height, width), dark = air."""

    image: npt.NDArray[np.uint8]
    info: FilmInfo


def read_film(path: Path) -> Film:
    """Decode one DICOM film to 8 bits by its modality LUT, VOI LUT or window and photometric interpretation.

    Raises RejectedFilm, with a reason that a person can act on, for whatever is not one readable grey film.
    """
    with warnings.catch_warnings():
        # Real archives break value representations everywhere; what matters here is checked explicitly below.
        warnings.simplefilter("ignore")
        try:
            dataset = _read_dataset(path)
            return Film(_to_grey8(_decode(dataset), dataset), _info(dataset))
        except RejectedFilm:
            raise
        except (
            Exception
        ) as error:  # pydicom parses values when they are asked for and raises what a damaged one leads to
            raise RejectedFilm(f"damaged DICOM data ({type(error).__name__}: {error}); export it again") from None


def _read_dataset(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path)
    except InvalidDicomError:
        raise RejectedFilm("no DICOM file meta information: not a DICOM file, or damaged; export it again") from None
    except (OSError, EOFError) as error:
        raise RejectedFilm(f"unreadable: {error}") from None
    if "PixelData" not in dataset:
        raise RejectedFilm("holds no pixel data (a report or a truncated file?)")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise RejectedFilm(f"multi-frame object with {dataset.NumberOfFrames} frames; only single films are taken")
    return dataset


def _decode(dataset: Dataset) -> npt.NDArray[np.generic]:
    try:
        pixels = dataset.pixel_array
    except Exception as error:  # the decoder plugins raise their own kinds
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        name = getattr(syntax, "name", "unknown transfer syntax")
        raise RejectedFilm(f"pixel data cannot be decoded ({name}): {error}") from None
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        if photometric.startswith("YBR"):
            pixels = convert_color_space(pixels, photometric, "RGB")
        return np.asarray(np.rint(pixels @ np.array([0.299, 0.587, 0.114])), pixels.dtype)
    if pixels.ndim != 2 or photometric not in GREY:
        raise RejectedFilm(f"{photometric or 'unknown'} pixels of shape {pixels.shape} are no grey film")
    return np.asarray(pixels)


def _to_grey8(pixels: npt.NDArray[np.generic], dataset: Dataset) -> npt.NDArray[np.uint8]:
    has_voi = "VOILUTSequence" in dataset or dataset.get("WindowCenter") not in (None, "")
    has_modality = "ModalityLUTSequence" in dataset or (
        float(dataset.get("RescaleSlope") or 1) != 1 or float(dataset.get("RescaleIntercept") or 0) != 0
    )
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    if pixels.dtype == np.uint8 and not has_voi and not has_modality:
        image = np.asarray(pixels, np.uint8)
        return 255 - image if inverted else image
    try:
        values, low, high = _displayed(np.asarray(apply_modality_lut(pixels, dataset)), dataset, has_voi)
    except Exception as error:  # damaged lookup tables surface as IndexError, KeyError, TypeError …
        raise RejectedFilm(f"its grey-level lookup cannot be applied ({type(error).__name__}: {error})") from None
    if not high > low:
        raise RejectedFilm("all pixels have one value")
    unit = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.rint((1.0 - unit if inverted else unit) * 255.0).astype(np.uint8)


def _displayed(
    values: npt.NDArray[np.generic], dataset: Dataset, has_voi: bool
) -> tuple[npt.NDArray[np.float64], float, float]:
    """Return values after the VOI LUT or window, and the ends of the displayed range.

    The ends are where the window or table sends the extremes, not what this film happens to reach: MONOCHROME1 is
    inverted within them.
    """
    if not has_voi:
        return np.asarray(values, np.float64), float(values.min()), float(values.max())
    if "VOILUTSequence" in dataset:
        values = np.rint(values.astype(np.float64)).astype(np.int64)
        table = np.asarray(dataset.VOILUTSequence[0].LUTData, np.float64)
        ends = np.array([table.min(), table.max()])
    else:
        ends = np.asarray(apply_voi_lut(np.array([-1e12, 1e12]), dataset), np.float64)
    return np.asarray(apply_voi_lut(values, dataset), np.float64), float(ends.min()), float(ends.max())


def _info(dataset: Dataset) -> FilmInfo:
    tag = next((t for t in ("PixelSpacing", "ImagerPixelSpacing") if dataset.get(t)), "")
    spacing = _floats(dataset.get(tag)) if tag else ()
    row, column = spacing if len(spacing) == 2 else (None, None)
    return FilmInfo(
        patient_id=_text(dataset, "PatientID"),
        view=_text(dataset, "ViewPosition").upper(),
        sex=_text(dataset, "PatientSex").upper(),
        age=parse_age(_text(dataset, "PatientAge")),
        spacing_row=row,
        spacing_column=column,
        spacing_tag=tag if row is not None else "",
    )


def parse_age(text: str) -> int | None:
    """Return whole years from a DICOM age (`038Y`, `11M`, or SIIM's bare `38`), pooled at 90; None if unknown."""
    found = re.fullmatch(r"0*(\d{1,3})([YMWD]?)", text.strip().upper())
    if not found:
        return None
    number = int(found[1])
    years = {"Y": number, "": number, "M": number // 12, "W": number // 52, "D": number // 365}[found[2]]
    return min(years, OLDEST_AGE)


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _floats(value: Any) -> tuple[float, ...]:
    try:
        return tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return ()
