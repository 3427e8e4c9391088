"""A JPEG stream without the segments that may name a patient; nothing is decoded."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.errors import RejectedFilm

_SOI, _EOI, _SOS, _SOF0, _COM, _TEM = 0xD8, 0xD9, 0xDA, 0xC0, 0xFE, 0x01
_APP = range(0xE0, 0xF0)
_STANDALONE = frozenset({_TEM, *range(0xD0, 0xD9)})
_FIRST_RESTART, _LAST_RESTART = 0xD0, 0xD7


@dataclass(frozen=True)
class _Part:
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
    kept = [stream[p.start : p.end] for p in _parts(stream) if p.marker not in _APP and p.marker != _COM]
    return b"".join(kept)


def is_grey_baseline(stream: bytes, height: int, width: int) -> bool:
    """Tell whether a stream's frame is 8-bit sequential baseline of one component and height x width pixels.

    Raises RejectedFilm as strip_jpeg_metadata does.
    """
    for part in _parts(stream):
        if part.marker == _SOF0:
            header = stream[part.body : part.body + 6]
            return header == b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x01"
    return False


def _parts(stream: bytes) -> Iterator[_Part]:
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
        yield _Part(marker, start, body, end)
        if marker == _EOI:
            return
        position = end


def _scan_ends(stream: bytes) -> npt.NDArray[np.int64]:
    """Return where entropy-coded data would end: each 0xFF whose next byte is no stuffing, restart marker or fill."""
    content = np.frombuffer(stream, np.uint8)
    found = np.flatnonzero(content[:-1] == 0xFF)
    following = content[found + 1]
    is_restart = (following >= _FIRST_RESTART) & (following <= _LAST_RESTART)
    return np.asarray(found[(following != 0) & (following != 0xFF) & ~is_restart], np.int64)


def _damage(stream: bytes, position: int) -> str:
    where = "it stops before its end marker" if position >= len(stream) else f"no whole segment at byte {position}"
    return f"damaged JPEG stream ({where}); export it again"
