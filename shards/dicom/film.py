"""A DICOM file becomes an 8-bit grey image and the few facts that training may know."""

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, get_decoder

from shards.dicom.grey import luma, to_grey8
from shards.dicom.jpeg import is_grey_baseline, strip_jpeg_metadata
from shards.dicom.rules import FilmRules, frame_count, screen, text
from shards.errors import RejectedFilm

__all__ = ["SUFFIXES", "Film", "FilmInfo", "FilmRules", "parse_age", "read_film", "strip_jpeg_metadata"]

SUFFIXES = frozenset({".dcm", ".dicom"})
GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
# Ages from 90 identify people; HIPAA's safe harbour pools them.
OLDEST_AGE = 90
# Decoders differ by a grey level, so each lossy syntax has one. Pillow's and OpenCV's baseline decoder are both
# libjpeg-turbo: a stream decoded later gives this image.
_PLUGINS = {
    uid.JPEGBaseline8Bit: "pillow",
    **dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), "pylibjpeg"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pylibjpeg"),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "pylibjpeg"),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "pylibjpeg"),
    uid.RLELossless: "pydicom",
}
# What shows that a file without a DICM prefix is a DICOM image all the same.
_SIGNS = ("SOPClassUID", "Rows", "Columns", "PixelData")
# Larger values stay on disk until asked for: a cine loop is refused without a gigabyte of it in memory.
_DEFER_BYTES = 64 << 20
_DEFAULT_RULES = FilmRules()


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
    """A decoded film: `image` is uint8 of shape (height, width), dark = air.

    `warnings` tell what its tags leave open. `jpeg` is the file's own baseline stream without APPn and COM segments
    where decoding that gives `image` (8-bit grey, one frame, no lookup, window, inversion or padding), else None.
    """

    image: npt.NDArray[np.uint8]
    info: FilmInfo
    warnings: tuple[str, ...] = ()
    jpeg: bytes | None = None
    aspect: float = 1.0


def read_film(path: Path, rules: FilmRules = _DEFAULT_RULES) -> Film:
    """Decode one DICOM film to 8 bits by its modality LUT, VOI LUT or window and photometric interpretation.

    Raises RejectedFilm, with a reason that a person can act on, for what the rules refuse or cannot be read.
    """
    with warnings.catch_warnings():
        # Real archives break value representations everywhere; what matters here is checked explicitly below.
        warnings.simplefilter("ignore")
        try:
            dataset = _read_dataset(path)
            return _film(dataset, screen(dataset, rules))
        except RejectedFilm:
            raise
        except (
            Exception
        ) as error:  # pydicom parses values when they are asked for and raises what a damaged one leads to
            raise RejectedFilm(f"damaged DICOM data ({_named(error)}); export it again") from None


def _read_dataset(path: Path) -> Dataset:
    try:
        dataset: Dataset = pydicom.dcmread(path, defer_size=_DEFER_BYTES)
    except InvalidDicomError:
        dataset = _read_without_prefix(path)
    except (OSError, EOFError) as error:
        raise RejectedFilm(f"unreadable: {error}") from None
    if "PixelData" not in dataset:
        raise RejectedFilm("holds no pixel data (a report or a truncated file?)")
    if not getattr(dataset, "file_meta", FileMetaDataset()).get("TransferSyntaxUID"):
        _guess_transfer_syntax(dataset)
    return dataset


def _read_without_prefix(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path, defer_size=_DEFER_BYTES, force=True)
        is_image = all(sign in dataset for sign in _SIGNS)
    except Exception:  # other files' bytes, read as DICOM, lead to errors of any kind
        is_image = False
    if not is_image:
        raise RejectedFilm(
            "not a DICOM file: no DICM prefix, and no image's elements without it; remove it, or export it again"
        )
    return dataset


def _guess_transfer_syntax(dataset: Dataset) -> None:
    """Set the transfer syntax that pydicom found in the elements themselves, for want of a file meta element."""
    if dataset["PixelData"].is_undefined_length:
        raise RejectedFilm(
            "its pixels are compressed and no transfer syntax says how; export it again with file meta information"
        )
    implicit, little = dataset.original_encoding
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    )


def _film(dataset: Dataset, open_points: tuple[str, ...]) -> Film:
    jpeg = _own_jpeg(dataset)
    # Decoding what may be handed on, not the file's own bytes, makes the two one image whatever a decoder forgives.
    decoded = None if jpeg is None else _decode_grey_jpeg(jpeg)
    pixels, photometric = _decode(dataset) if decoded is None else (decoded, dataset.PhotometricInterpretation)
    is_grey = photometric in GREY
    try:
        # Windows and lookups are defined for grey pixels only.
        image, unchanged = to_grey8(pixels, dataset if is_grey else Dataset())
    except RejectedFilm:
        raise
    except Exception as error:  # damaged lookup tables surface as IndexError, KeyError, TypeError …
        raise RejectedFilm(f"its grey-level lookup cannot be applied ({_named(error)}); export it again") from None
    return Film(image, _info(dataset), open_points, jpeg if unchanged and decoded is not None else None)


def _decode(dataset: Dataset) -> tuple[npt.NDArray[np.generic], str]:
    """Return the first frame, grey (height, width), and its photometric interpretation (RGB for what was colour)."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        pixels, facts = get_decoder(syntax).as_array(dataset, index=0, decoding_plugin=_PLUGINS.get(syntax, ""))
    except Exception as error:  # the decoder plugins raise their own kinds
        name = getattr(syntax, "name", "unknown transfer syntax")
        raise RejectedFilm(f"pixel data cannot be decoded ({name}): {_one_line(error)}; export it again") from None
    photometric = str(facts["photometric_interpretation"])
    if photometric == "PALETTE COLOR" and pixels.ndim == 2:
        try:
            return luma(apply_color_lut(pixels, dataset)[..., :3]), "RGB"
        except Exception as error:
            raise RejectedFilm(
                f"PALETTE COLOR film without a usable palette ({_one_line(error)}); export it again"
            ) from None
    if photometric == "RGB" and pixels.ndim == 3 and pixels.shape[2] == 3:
        return luma(pixels), photometric
    if photometric not in GREY or pixels.ndim != 2:
        raise RejectedFilm(
            f"{photometric or 'unknown'} pixels of shape {pixels.shape} are no grey film; export it as MONOCHROME2"
        )
    return pixels, photometric


def _own_jpeg(dataset: Dataset) -> bytes | None:
    """Return the stream of an 8-bit grey baseline film without APPn and COM segments; None where it has none."""
    if (
        dataset.file_meta.TransferSyntaxUID != uid.JPEGBaseline8Bit
        or frame_count(dataset) > 1
        or dataset.get("PhotometricInterpretation") not in GREY
        or (dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation) != (8, 8, 0)
    ):
        return None
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    try:
        is_own = is_grey_baseline(stream, dataset.Rows, dataset.Columns)
        return strip_jpeg_metadata(stream) if is_own else None
    except RejectedFilm:  # what decoders forgive is no reason to lose a film
        return None


def _decode_grey_jpeg(stream: bytes) -> npt.NDArray[np.uint8] | None:
    """Return what every later reader of the stream sees, at half the time of pydicom's decoder; None if refused."""
    image = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_GRAYSCALE)
    return None if image is None else np.asarray(image, np.uint8)


def _info(dataset: Dataset) -> FilmInfo:
    tag = next((t for t in ("PixelSpacing", "ImagerPixelSpacing") if dataset.get(t)), "")
    spacing = _lengths(dataset.get(tag)) if tag else ()
    row, column = spacing if len(spacing) == 2 else (None, None)
    return FilmInfo(
        patient_id=text(dataset, "PatientID"),
        view=text(dataset, "ViewPosition").upper(),
        sex=text(dataset, "PatientSex").upper(),
        age=parse_age(text(dataset, "PatientAge")),
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


def _lengths(value: Any) -> tuple[float, ...]:
    """Return positive numbers; nothing where one is not (some writers fill the tag with zeros)."""
    try:
        lengths = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return ()
    return lengths if all(math.isfinite(v) and v > 0 for v in lengths) else ()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
