"""JPEG streams: damage that a decoder would accept, and segments that may identify a patient."""

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from dicom_films import END, FILM, SECRET, secret, write
from dicom_streams import encode_jpeg
from images import decode

from shards.dicom.film import read_film, strip_jpeg_metadata
from shards.dicom.jpeg import decode_grey_jpeg
from shards.errors import RejectedFilm

Pixels = npt.NDArray[Any]


def scan_of(stream: bytes) -> int:
    """Position of the data of the first scan."""
    return stream.index(b"\xff\xda") + 2 + int.from_bytes(stream[stream.index(b"\xff\xda") + 2 :][:2], "big")


@pytest.mark.parametrize(
    "options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 7)], ids=str
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_a_baseline_scan_that_stops_early_is_refused(tmp_path: Path, share: float, options: tuple[int, ...]) -> None:
    stream = encode_jpeg(FILM, *options)
    start = scan_of(stream)
    cut = stream[: start + int((len(stream) - start) * share)].rstrip(b"\xff")
    assert decode(cut + END).shape == FILM.shape  # with a warning on stderr, and an image that is half grey
    for damaged in (cut, cut + END):
        with pytest.raises(RejectedFilm, match=r"damaged JPEG stream \(.*\); export it again"):
            read_film(write(tmp_path, damaged))


def test_a_scan_with_a_burst_of_wrong_bits_is_refused_where_the_decoder_sees_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stream = encode_jpeg(FILM)
    start = scan_of(stream)
    refused = 0
    for _ in range(40):
        damaged = bytearray(stream)
        at = int(rng.integers(start, len(stream) - 40))
        damaged[at : at + 16] = rng.integers(0, 255, 16, np.uint8).tobytes()
        try:
            film = read_film(write(tmp_path, bytes(damaged)))
        except RejectedFilm:
            refused += 1
        else:  # the kept stream decodes to the same image
            assert film.jpeg is not None
            np.testing.assert_array_equal(decode(film.jpeg), film.image)
    assert refused >= 20


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_half_a_scan_of_a_colour_film_is_refused(tmp_path: Path, photometric: str) -> None:
    colour = cv2.cvtColor(FILM, cv2.COLOR_GRAY2BGR)
    stream = encode_jpeg(colour)
    tags: dict[str, Any] = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    film = read_film(write(tmp_path, stream, **tags))
    assert film.jpeg is None and np.abs(film.image.astype(int) - FILM).max() < 20
    with pytest.raises(RejectedFilm, match="damaged JPEG stream"):
        read_film(write(tmp_path, stream[: len(stream) // 2] + END, **tags))


def test_bytes_after_the_end_marker_do_no_harm(tmp_path: Path) -> None:
    stream = encode_jpeg(FILM)
    film = read_film(write(tmp_path, stream + b"\0\0"))
    assert film.jpeg == strip_jpeg_metadata(stream)
    assert film.warnings == ()


@pytest.mark.parametrize("quality", [30, 75, 95, 100])
@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_OPTIMIZE, 1)], ids=str)
def test_good_streams_decode_as_every_later_reader_decodes_them(quality: int, options: tuple[int, ...]) -> None:
    for seed, shape in enumerate([(64, 64), (97, 131), (200, 65)]):
        noise = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        stream = encode_jpeg(cv2.GaussianBlur(noise, (0, 0), 2), cv2.IMWRITE_JPEG_QUALITY, quality, *options)
        np.testing.assert_array_equal(decode_grey_jpeg(stream), decode(stream))
        np.testing.assert_array_equal(decode_grey_jpeg(strip_jpeg_metadata(stream)), decode(stream))


def segments_before_scan(stream: bytes) -> tuple[list[bytes], bytes]:
    """The marker segments before the scan, and everything from the scan on; for streams without fill bytes."""
    position, parts = 2, [stream[:2]]
    while stream[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        parts.append(stream[position:end])
        position = end
    return parts, stream[position:]


@pytest.mark.parametrize(
    "options", [(), (cv2.IMWRITE_JPEG_RST_INTERVAL, 3), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)], ids=str
)
def test_metadata_segments_are_stripped_and_all_else_is_kept(phantom: Pixels, options: tuple[int, ...]) -> None:
    parts, rest = segments_before_scan(encode_jpeg(phantom, *options))
    assert any(part[1] == 0xE0 for part in parts)
    kept = [part for part in parts if part[1] != 0xE0]
    assert strip_jpeg_metadata(b"".join(parts) + rest) == b"".join(kept) + rest
    # Metadata in every gap, also before the end marker; fill bytes; a pad byte and more after the end.
    for pad in (b"", b"\0", b"\xff", SECRET):
        for marker in (*range(0xE0, 0xF0), 0xFE):
            filled = b"".join(part + secret(marker) + b"\xff\xff" + secret(marker) for part in kept)
            full = filled + rest[:-2] + secret(marker) + rest[-2:] + pad
            assert strip_jpeg_metadata(full) == b"".join(kept) + rest
    # Fill bytes and a standalone marker in kept segments stay.
    odd = kept[0] + b"\xff\xff" + kept[1] + b"\xff\x01" + b"".join(kept[2:]) + rest[:-2] + b"\xff" + rest[-2:]
    assert strip_jpeg_metadata(odd) == odd


def test_metadata_between_scans_is_stripped(phantom: Pixels) -> None:
    parts, rest = segments_before_scan(encode_jpeg(phantom, cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    bare = strip_jpeg_metadata(b"".join(parts) + rest)
    second = bare.index(b"\xff\xc4", bare.index(b"\xff\xda"))  # the second scan's Huffman table
    assert strip_jpeg_metadata(bare[:second] + secret(0xFE) + bare[second:]) == bare


def test_a_damaged_stream_is_refused(phantom: Pixels) -> None:
    stream = encode_jpeg(phantom)
    for length in [*range(700), *range(700, len(stream), 37), len(stream) - 1]:
        with pytest.raises(RejectedFilm, match="damaged JPEG"):
            strip_jpeg_metadata(stream[:length])
    for damaged in (b"no stream", stream[2:], stream[:2] + stream, stream[:2] + b"\xff\xdb\0\1" + stream[2:]):
        with pytest.raises(RejectedFilm, match="damaged JPEG"):
            strip_jpeg_metadata(damaged)
    rng = random.Random(0)
    for _ in range(300):
        flipped = bytearray(stream)
        flipped[rng.randrange(len(stream))] = rng.randrange(256)
        try:
            stripped = strip_jpeg_metadata(bytes(flipped))
            assert strip_jpeg_metadata(stripped) == stripped
        except RejectedFilm:
            pass
