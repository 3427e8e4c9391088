"""A JPEG stream is decoded without forgiving anything, and loses the segments that may name a patient."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

from shards.arrays import Image, Integers
from shards.errors import RejectedFilm

_SOI, _EOI, _SOS, _COM, _TEM = 0xD8, 0xD9, 0xDA, 0xFE, 0x01
_APP = range(0xE0, 0xF0)
_STANDALONE = frozenset({_TEM, *range(0xD0, 0xD9)})
_FIRST_RESTART, _LAST_RESTART = 0xD0, 0xD7
_END, _SCAN = b"\xff\xd9", b"\xff\xda"
# Progressive streams have about ten; each is work for every pixel.
_MOST_SCANS = 64
NO_END = "its JPEG stream has no end marker: its picture is whole"


@dataclass(frozen=True)
class _Segment:
    """Bytes start..end of a stream: a marker with the fill bytes before it, its segment and, after SOS, the scan.

    `body` is where the segment's parameters begin, behind its two length bytes.
    """

    marker: int
    start: int
    body: int
    end: int


def strip_jpeg_metadata(stream: bytes) -> bytes:
    """Return a JPEG stream without its APP0..APP15 and COM segments and without what follows its end marker.

    All other bytes, entropy-coded data included, are kept as they are. Raises RejectedFilm for a stream that is not
    marker segments from SOI to EOI.
    """
    kept = [stream[p.start : p.end] for p in _segments(stream) if p.marker not in _APP and p.marker != _COM]
    return b"".join(kept)


def decode_grey_jpeg(stream: bytes) -> Image:
    """Return an 8-bit JPEG stream as grey (height, width), the image that every decoder of libjpeg-turbo gives.

    Raises RejectedFilm for what the decoder complains of, although it would go on: half of a scan, a wrong code.
    """
    try:
        return np.asarray(simplejpeg.decode_jpeg(stream, "GRAY", strict=True)[..., 0], np.uint8)
    except ValueError as error:
        raise RejectedFilm(_complaint(error)) from None


def check_jpeg(stream: bytes) -> tuple[str, ...]:
    """Raise RejectedFilm as decode_grey_jpeg does, at a part of the time; return a warning for a missing end marker."""
    if stream.count(_SCAN) > _MOST_SCANS:
        raise RejectedFilm(f"its JPEG stream has more than {_MOST_SCANS} scans; export it again")
    try:
        simplejpeg.decode_jpeg(stream, "GRAY", min_factor=8, strict=True)
        return ()
    except ValueError as error:
        complaint = _complaint(error)
    if stream.rstrip(b"\0").endswith(_END):
        raise RejectedFilm(complaint)
    try:
        simplejpeg.decode_jpeg(stream + _END, "GRAY", min_factor=8, strict=True)
    except ValueError as error:
        raise RejectedFilm(_complaint(error)) from None
    return (NO_END,)


def _complaint(error: ValueError) -> str:
    return f"damaged JPEG stream ({' '.join(str(error).split())}); export it again"


def _segments(stream: bytes) -> Iterator[_Segment]:
    scan_ends = _scan_ends(stream)
    position = 0
    while True:
        start = position
        if stream[position : position + 1] != b"\xff":
            raise RejectedFilm(_damage(stream, start))
        while stream[position : position + 1] == b"\xff":
            position += 1
        marker = stream[position] if position < len(stream) else 0
        position += 1
        if (start == 0) != (marker == _SOI) or marker == 0:
            raise RejectedFilm(_damage(stream, start))
        body = end = position
        if marker not in _STANDALONE and marker != _EOI:
            length = int.from_bytes(stream[position : position + 2], "big")
            body, end = position + 2, position + length
            if length < 2 or end > len(stream):
                raise RejectedFilm(_damage(stream, start))
        if marker == _SOS:
            after = scan_ends[np.searchsorted(scan_ends, end) :]
            if not len(after):
                raise RejectedFilm(_damage(stream, len(stream)))
            scan, end = end, int(after[0])
            while end > scan and stream[end - 1] == 0xFF:  # fill bytes belong to the marker
                end -= 1
        yield _Segment(marker, start, body, end)
        if marker == _EOI:
            return
        position = end


def _scan_ends(stream: bytes) -> Integers:
    """Return where entropy-coded data would end: each 0xFF whose next byte is no stuffing, restart marker or fill."""
    content = np.frombuffer(stream, np.uint8)
    found = np.flatnonzero(content[:-1] == 0xFF)
    following = content[found + 1]
    is_restart = (following >= _FIRST_RESTART) & (following <= _LAST_RESTART)
    return np.asarray(found[(following != 0) & (following != 0xFF) & ~is_restart], np.int64)


def _damage(stream: bytes, position: int) -> str:
    where = "it stops before its end marker" if position >= len(stream) else f"no whole segment at byte {position}"
    return f"damaged JPEG stream ({where}); export it again"
