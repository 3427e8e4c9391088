"""The size of a compressed frame, and the ends of its rows, without decoding."""

import itertools
import struct
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from dicom_films import write
from dicom_streams import encode_jpeg, recode
from film_files import write_film
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.filereader import dcmread

from shards.dicom.film import read_film
from shards.dicom.stream import (
    StreamHeader,
    jpeg_2000_header,
    jpeg_header,
    other_row_length,
    rle_run_ends,
    rle_segments,
    shows_rows,
)
from shards.errors import RejectedFilm

Pixels = npt.NDArray[Any]
DEEP = np.kron(np.random.default_rng(1).integers(0, 4096, (10, 12)), np.ones((8, 8), int)).astype(np.uint16)


def test_a_picture_without_all_its_tiles_is_refused(tmp_path: Path) -> None:
    path = recode(write_film(tmp_path / "a.dcm", DEEP, BitsStored=12, HighBit=11), uid.JPEG2000Lossless)
    frame = bytearray(get_frame(dcmread(path).PixelData, 0, number_of_frames=1))
    size = frame.index(b"\xff\x51")
    rows, columns = DEEP.shape
    frame[size + 6 : size + 14] = (columns * 2).to_bytes(4, "big") + (rows * 3).to_bytes(4, "big")
    large = np.tile(DEEP, (3, 2))
    with pytest.raises(RejectedFilm, match="lacks tiles"):
        read_film(write(tmp_path, bytes(frame), large, uid.JPEG2000Lossless, BitsStored=12, HighBit=11))


def runs(segment: bytes) -> list[int]:
    """Decode an RLE segment byte by byte, and return the length after each run."""
    decoded, ends, at = 0, [], 0
    while at < len(segment):
        head = segment[at]
        if head < 128:
            literal = segment[at + 1 : at + 2 + head]
            decoded, at = decoded + len(literal), at + 2 + head
        elif head > 128:
            decoded, at = decoded + 257 - head, at + 2
        else:
            at += 1
            continue
        ends.append(decoded)
    return ends


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20), st.randoms())
def test_run_ends_are_those_of_a_decoder(rows: list[bytes], random: Random) -> None:
    segment = b""
    for row in rows:
        for start in range(0, len(row), 128):
            part = row[start : start + 128]
            is_run = len(part) > 1 and random.random() < 0.5
            segment += bytes([257 - len(part), part[0]]) if is_run else bytes([len(part) - 1]) + part
        segment += b"\x80" * random.randrange(2)
    assert rle_run_ends(segment, 10**6, 10**6) == runs(segment)
    assert rle_run_ends(segment, 10**6, 3) == runs(segment)[:3]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_rows_are_shown_by_a_run_that_ends_at_each(lengths: list[int], length: int) -> None:
    ends = list(itertools.accumulate(lengths))
    assert shows_rows(ends, length) == all(end in ends for end in range(length, ends[-1] + 1, length))


def test_the_length_of_rows_is_found_where_all_runs_show_it() -> None:
    ends = [end for row in range(64) for end in (row * 48 + 17, row * 48 + 48)]
    assert other_row_length(ends, 48, 64) == 48
    assert other_row_length(ends, 96, 32) == 96, "exchanged Rows and Columns come first"
    assert other_row_length(list(range(7, 48 * 64, 7)), 64, 48) is None


@pytest.mark.parametrize("frame", [b"", b"\1" * 63, b"\0" * 64, (16).to_bytes(4, "little") + bytes(60)])
def test_rle_without_a_header_is_refused(frame: bytes) -> None:
    with pytest.raises(RejectedFilm, match="RLE data"):
        rle_segments(frame)


def test_rle_segments_lie_between_the_offsets_of_the_header() -> None:
    header = struct.pack("<16L", 2, 64, 67, *[0] * 13)
    assert rle_segments(header + b"abcde") == [b"abc", b"de"]


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)], ids=["baseline", "progressive"])
def test_the_header_of_a_jpeg_has_its_size(options: tuple[int, ...]) -> None:
    stream = encode_jpeg(np.zeros((24, 40), np.uint8), *options)
    assert jpeg_header(stream) == StreamHeader(24, 40, 1, 8, is_baseline=not options)
    for damaged in (b"", stream[:40], b"\xff\xd8\xff\xd9" + bytes(20)):
        with pytest.raises(RejectedFilm, match="no JPEG frame header"):
            jpeg_header(damaged)


def test_the_header_of_a_jpeg_2000_has_its_size(tmp_path: Path) -> None:
    path = recode(write_film(tmp_path / "a.dcm", DEEP, BitsStored=12, HighBit=11), uid.JPEG2000Lossless)
    frame = get_frame(dcmread(path).PixelData, 0, number_of_frames=1)
    header = jpeg_2000_header(frame)
    assert (header.rows, header.columns, header.samples) == (*DEEP.shape, 1)
    with pytest.raises(RejectedFilm, match="no JPEG 2000 header"):
        jpeg_2000_header(frame[:30])
