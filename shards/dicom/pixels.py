"""Decodes the first frame of a film to stored values with one grey sample per pixel."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.utils import as_pixel_options

from shards.arrays import PixelValues
from shards.dicom.frame import Layout, first_frame
from shards.dicom.grey import luma
from shards.dicom.jpeg import check_jpeg, decode_grey_jpeg, strip_jpeg_metadata
from shards.dicom.read import one_line
from shards.dicom.stream import jpeg_header
from shards.errors import RejectedFilm

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_PHOTOMETRIC = GREY | {"PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
# Decoders differ by a grey level, so each lossy syntax has a fixed one. The baseline decoders of Pillow, OpenCV and
# simplejpeg are all libjpeg-turbo, so a stream decoded later gives the same image. pyjpegls refuses damaged streams,
# pylibjpeg does not.
_PLUGINS = {
    uid.JPEGBaseline8Bit: "pillow",
    **dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), "pylibjpeg"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "pylibjpeg"),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "pylibjpeg"),
    uid.RLELossless: "pydicom",
}
# The decoder of these silently fills a truncated scan with the last value.
_SILENT = frozenset({uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1})
_FILLER = b"\x55\xaa\x33\xcc\x0f\x5a" * 100
_END = b"\xff\xd9"
# Zero of the chroma of a grey film, and the maximum deviation from it, also in lossy streams.
_CHROMA_ZERO, _CHROMA_STRAY = 128, 8
CHROMA = "its Photometric Interpretation is RGB, its colours are luma and chroma: the luma is taken"
WRAPPED = "its values have more bits than Bits Stored: the upper ones are cut off"


@dataclass(frozen=True)
class Pixels:
    """Stored values (height, width) of a first frame, and their photometric interpretation (RGB for colour images).

    `jpeg` is the file's stream without metadata, if it is 8-bit grey baseline and decodes to `values`.
    """

    values: PixelValues
    photometric: str
    warnings: tuple[str, ...] = ()
    jpeg: bytes | None = None


def read_pixels(dataset: Dataset, layout: Layout) -> Pixels:
    """Decode the first frame. Raises RejectedFilm if it is damaged or differs from the tags."""
    frame, warnings = first_frame(dataset, layout)
    syntax = dataset.file_meta.TransferSyntaxUID
    if frame is not None and syntax == uid.JPEGBaseline8Bit:
        stripped = _stripped_jpeg(frame, layout)
        if stripped is not None:
            # Decode the stripped stream, not that of the file, so that image and stream always agree.
            return Pixels(decode_grey_jpeg(stripped), layout.photometric, warnings, stripped)
        warnings = (*warnings, *check_jpeg(frame))
    values, photometric = _decode(dataset, syntax)
    values, has_wrapped = cut_bits(values, layout)
    if has_wrapped and not _has_overlay_bits(dataset):
        warnings = (*warnings, WRAPPED)
    if frame is not None and syntax in _SILENT and len(values) > 1 and np.array_equal(values[-1], values[-2]):
        _check_scan(frame, dataset, syntax)
    if photometric == "RGB" and values.ndim == 3 and values.dtype == np.uint8 and _is_chroma(values[..., 1:]):
        return Pixels(values[..., 0], "RGB", (*warnings, CHROMA))
    return Pixels(*_grey(values, photometric, dataset), warnings)


def _stripped_jpeg(frame: bytes, layout: Layout) -> bytes | None:
    """Return the stream of an 8-bit grey baseline film without APPn and COM segments; None for other films."""
    if (
        layout.frames > 1
        or layout.photometric not in GREY
        or (layout.bits_allocated, layout.bits_stored, layout.is_signed) != (8, 8, False)
    ):
        return None
    header = jpeg_header(frame)
    if not header.is_baseline or header.precision != 8:
        return None
    try:
        return strip_jpeg_metadata(frame)
    except RejectedFilm:  # decoders may still accept the stream
        return None


def _decode(dataset: Dataset, syntax: uid.UID) -> tuple[PixelValues, str]:
    try:
        options: Any = {"decoding_plugin": _PLUGINS.get(syntax, ""), "correct_unused_bits": False}
        values, facts = get_decoder(syntax).as_array(dataset, index=0, **options)
    except Exception as error:  # the plugins raise errors of any kind
        name = getattr(syntax, "name", "unknown transfer syntax")
        raise RejectedFilm(f"pixel data cannot be decoded ({name}): {one_line(error)}; export it again") from None
    return values, str(facts["photometric_interpretation"])


def cut_bits(values: PixelValues, layout: Layout) -> tuple[PixelValues, bool]:
    """Reduce values to Bits Stored bits; return whether any had more. Other bits have no meaning (PS3.5 8.1.1)."""
    bits = layout.bits_stored
    if values.dtype.kind not in "iu" or bits >= 8 * values.dtype.itemsize:
        return values, False
    whole, half = 1 << bits, 1 << (bits - 1)
    low, high = int(values.min()), int(values.max())
    if values.dtype.kind == "u":
        return (values, False) if high < whole else (values & (whole - 1), True)
    if low >= -half and high < half:
        return values, False
    # Negative values are valid even if the sign does not fill the upper bits.
    has_more = low < -half or high >= whole or (low < 0 and high >= half)
    return ((values & (whole - 1)) ^ half) - half, has_more


def _has_overlay_bits(dataset: Dataset) -> bool:
    """Return whether overlays are in the bits above those stored, as older versions of the standard allowed."""
    planes = (0x6000 + 2 * number for number in range(16))
    return any((plane, 0x0102) in dataset and (plane, 0x3000) not in dataset for plane in planes)


def _is_chroma(values: PixelValues) -> bool:
    """Return whether the second and third samples are the chroma of a grey film, and not green and blue."""
    return int(values.min()) >= _CHROMA_ZERO - _CHROMA_STRAY and int(values.max()) <= _CHROMA_ZERO + _CHROMA_STRAY


def _check_scan(frame: bytes, dataset: Dataset, syntax: uid.UID) -> None:
    """Raise RejectedFilm if a scan is truncated: bytes appended to it then change the image.

    Called for films whose last rows are equal, as those of a truncated scan are.
    """
    options = {**as_pixel_options(dataset), "number_of_frames": 1, "pixel_keyword": "PixelData"}
    options.pop("extended_offsets", None)
    scan = frame[: frame.rindex(_END)] if _END in frame else frame

    def decoded(stream: bytes) -> bytes:
        try:
            decoder = get_decoder(syntax)
            values, _ = decoder.as_array(
                encapsulate([stream]), index=0, raw=True, decoding_plugin=_PLUGINS[syntax], **options
            )
            return bytes(values.tobytes())
        except Exception:  # the decoder raises errors of any kind
            return b""

    if decoded(scan + _END) != decoded(scan + _FILLER + _END):
        raise RejectedFilm("damaged JPEG stream (its scan stops early); export it again")


def _grey(values: PixelValues, photometric: str, dataset: Dataset) -> tuple[PixelValues, str]:
    """Return grey values (height, width), and their photometric interpretation (RGB for colour images)."""
    if photometric == "PALETTE COLOR" and values.ndim == 2:
        try:
            return luma(apply_color_lut(values, dataset)[..., :3]), "RGB"
        except Exception as error:
            raise RejectedFilm(
                f"PALETTE COLOR film without a usable palette ({one_line(error)}); export it again"
            ) from None
    if photometric == "RGB" and values.ndim == 3 and values.shape[2] == 3:
        return luma(values), photometric
    if photometric not in GREY or values.ndim != 2:
        kind = photometric if photometric in _PHOTOMETRIC else "unknown"
        raise RejectedFilm(f"{kind} pixels of shape {values.shape} are not a grey film; export it as MONOCHROME2")
    return values, photometric
