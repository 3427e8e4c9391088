"""Reads the size of a compressed frame, and the ends of its rows, without decoding it."""

import struct
from dataclasses import dataclass

import numpy as np

from shards.errors import RejectedFilm

_SOF0, _SOF_LS = 0xC0, 0xF7
# Frame headers of JPEG and JPEG-LS; 0xC4, 0xC8 and 0xCC among them are tables and reserved.
_FRAMES = frozenset({*range(0xC0, 0xD0), _SOF_LS}) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_2000_START, _START_OF_TILE = b"\xff\x4f\xff\x51", 0xFF90
# Minimum number and length of rows that show the length of a row.
_FEWEST_ROWS, _SHORTEST_ROW = 16, 16
_LONGEST_RUN = 128


@dataclass(frozen=True)
class StreamHeader:
    """Size, samples per pixel and bits per sample of a frame. `is_baseline` means sequential baseline JPEG."""

    rows: int
    columns: int
    samples: int
    precision: int
    is_baseline: bool = False


def jpeg_header(stream: bytes) -> StreamHeader:
    """Read the frame header of a JPEG or JPEG-LS stream. Raises RejectedFilm if there is none."""
    position = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while position + 10 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
        elif marker in _FRAMES:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", stream, position + 4)
            return StreamHeader(rows, columns, samples, precision, marker == _SOF0)
        else:
            position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    raise RejectedFilm("its pixel data contain no JPEG frame header; export it again")


def jpeg_2000_header(stream: bytes) -> StreamHeader:
    """Read the SIZ segment of a JPEG 2000 or HTJ2K stream.

    Raises RejectedFilm if there is none, and for missing tiles, which decoders leave black silently.
    """
    start = stream.find(_JPEG_2000_START)
    if start < 0 or len(stream) < start + 43:
        raise RejectedFilm("its pixel data contain no JPEG 2000 header; export it again")
    right, bottom, left, top, width, height, first, upper = struct.unpack_from(">8I", stream, start + 8)
    samples, depth = struct.unpack_from(">HB", stream, start + 40)
    tiles = -((first - right) // max(1, width)) * -((upper - bottom) // max(1, height))
    if len(_tiles(stream, start + 2)) < tiles:
        raise RejectedFilm("its JPEG 2000 image lacks tiles; export it again")
    return StreamHeader(bottom - top, right - left, samples, (depth & 0x7F) + 1)


def _tiles(stream: bytes, position: int) -> set[int]:
    """Return the numbers of the tiles of a JPEG 2000 stream, from a segment of its main header at `position`."""
    tiles: set[int] = set()
    while position + 12 <= len(stream):
        marker, length = struct.unpack_from(">HH", stream, position)
        if marker != _START_OF_TILE:
            if tiles or length < 2:  # the end of the image, or damage that decoders report
                break
            position += 2 + length
            continue
        number, size = struct.unpack_from(">HI", stream, position + 4)
        tiles.add(number)
        if size < 14:  # 0: up to the end
            break
        position += size
    return tiles


def rle_segments(frame: bytes) -> list[bytes]:
    """Return the segments of an RLE frame. Raises RejectedFilm for a damaged header."""
    if len(frame) < 64:
        raise RejectedFilm("its RLE data stop early; export it again")
    count, *offsets = struct.unpack_from("<16L", frame)
    if not 1 <= count <= 15:
        raise RejectedFilm("its RLE data have no complete header; export it again")
    ends = [*offsets[1:count], len(frame)]
    return [frame[start:end] for start, end in zip(offsets, ends, strict=False)]


def rle_run_ends(segment: bytes, most_bytes: int, most_runs: int) -> list[int]:
    """Return the number of decoded bytes at the end of each run of an RLE segment, up to the first beyond a limit."""
    ends: list[int] = []
    position = decoded = 0
    size = len(segment)
    while position < size and decoded <= most_bytes and len(ends) < most_runs:
        head = segment[position]
        if head < 128:
            decoded += min(head + 1, size - position - 1)
            position += head + 2
        elif head > 128:
            decoded += 257 - head
            position += 2
        else:
            position += 1
            continue
        ends.append(decoded)
    return ends


def shows_rows(ends: list[int], length: int) -> bool:
    """Return whether a run ends at the end of each row of `length` bytes (PS3.5 G.3.1), as far as the runs go."""
    run_ends = np.array(ends, np.int64)
    row_ends = np.arange(length, run_ends[-1] + 1, length) if len(ends) else np.zeros(0, np.int64)
    return bool(np.array_equal(run_ends[np.searchsorted(run_ends, row_ends)], row_ends))


def other_row_length(ends: list[int], rows: int, columns: int) -> int | None:
    """Return a length of row other than `columns` that all runs of a segment show, None if there is none.

    Noise that was coded without regard to rows ends a run after every 128 bytes, which does not show a length.
    """
    longest = rows * columns // _FEWEST_ROWS
    step = _LONGEST_RUN if shows_rows(ends, _LONGEST_RUN) else longest + 1
    lengths = [n for n in range(_SHORTEST_ROW, longest + 1) if rows * columns % n == 0 and n != columns and n % step]
    return next((n for n in sorted(lengths, key=lambda n: n != rows) if shows_rows(ends, n)), None)
