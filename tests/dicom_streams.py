"""Compressed frames for tests: DICOM films in other transfer syntaxes, and JPEG streams of every kind."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.encaps import encapsulate

Pixels = npt.NDArray[Any]


def recode(path: Path, syntax: uid.UID, frames: list[bytes] | None = None, **attributes: Any) -> Path:
    """Change the transfer syntax of a film of write_film, with the given frames or those that pydicom encodes."""
    film = pydicom.dcmread(path)
    for name, value in attributes.items():
        setattr(film, name, value)
    if frames is not None:
        film.PixelData = encapsulate(frames)
        film["PixelData"].VR = "OB"
        film["PixelData"].is_undefined_length = True
    elif syntax.is_encapsulated:
        film.compress(syntax)
    elif not syntax.is_little_endian:
        film.PixelData = np.frombuffer(film.PixelData, "<u2").byteswap().tobytes()
    film.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, film, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return path


def huffman_jpeg(frame: int, precision: int, shape: tuple[int, int], differences: Iterable[int], is_dct: bool) -> bytes:
    """A JPEG stream of DC differences (of 8x8 blocks without detail, or of pixels), enough to test decoders.

    Every category 0..16 has a code of five bits, its number. The end of a block is the only AC code, one 0 bit.
    """
    bits = ""
    for difference in differences:
        category = abs(difference).bit_length()
        bits += f"{category:05b}"
        if category:
            bits += f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}"
        bits += "0" if is_dct else ""
    bits += "1" * (-len(bits) % 8)
    scan = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\x00")

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body

    size = shape[0].to_bytes(2, "big") + shape[1].to_bytes(2, "big")
    parts = [b"\xff\xd8"]
    if is_dct:
        parts.append(segment(0xDB, b"\0" + b"\x08" * 64))
    parts.append(segment(frame, bytes([precision]) + size + b"\x01\x01\x11\0"))
    parts.append(segment(0xC4, b"\0" + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))))
    if is_dct:
        parts.append(segment(0xC4, b"\x10" + bytes([1, *[0] * 15]) + b"\0"))
    parts.append(segment(0xDA, b"\x01\x01\0" + (b"\0\x3f\0" if is_dct else b"\x01\0\0")))
    return b"".join([*parts, scan, b"\xff\xd9"])


def encode_jpeg(image: Pixels, *options: int) -> bytes:
    done, stream = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92, *options])
    assert done
    return bytes(stream.tobytes())
