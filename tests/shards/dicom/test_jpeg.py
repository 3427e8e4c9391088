"""Streams that a decoder would forgive: half a scan, wrong codes, missing tiles."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from dicom_streams import decode_jpeg, encode_jpeg, huffman_jpeg, recode
from film_files import write_film
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.filereader import dcmread

from shards.dicom.film import FilmRules, read_film, strip_jpeg_metadata
from shards.dicom.jpeg import decode_grey_jpeg
from shards.errors import RejectedFilm
from shards.phantom.dataset import render_film

Pixels = npt.NDArray[Any]

ANY_FILM = FilmRules(any_film=True)
FILM = render_film(np.random.default_rng(5), 256, True).image
END = b"\xff\xd9"


def write(
    path: Path, stream: bytes, pixels: Pixels = FILM, syntax: uid.UID = uid.JPEGBaseline8Bit, **more: Any
) -> Path:
    return recode(write_film(path / "a.dcm", pixels, **more), syntax, [stream])


def scan_of(stream: bytes) -> int:
    """Where the first scan's data begin."""
    return stream.index(b"\xff\xda") + 2 + int.from_bytes(stream[stream.index(b"\xff\xda") + 2 :][:2], "big")


@pytest.mark.parametrize(
    "options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 7)], ids=str
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_a_baseline_scan_that_stops_early_is_refused(tmp_path: Path, share: float, options: tuple[int, ...]) -> None:
    stream = encode_jpeg(FILM, *options)
    start = scan_of(stream)
    cut = stream[: start + int((len(stream) - start) * share)].rstrip(b"\xff")
    assert decode_jpeg(cut + END).shape == FILM.shape  # with a word on stderr, and a picture that is half grey
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
        else:  # what is handed on decodes to what was seen
            assert film.jpeg is not None
            np.testing.assert_array_equal(decode_jpeg(film.jpeg), film.image)
    assert refused >= 20


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_half_a_scan_of_a_colour_film_is_refused(tmp_path: Path, photometric: str) -> None:
    colour = cv2.cvtColor(FILM, cv2.COLOR_GRAY2BGR)
    stream = encode_jpeg(colour)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    film = read_film(write(tmp_path, stream, **tags))
    assert film.jpeg is None and np.abs(film.image.astype(int) - FILM).max() < 20
    with pytest.raises(RejectedFilm, match="damaged JPEG stream"):
        read_film(write(tmp_path, stream[: len(stream) // 2] + END, **tags))


def test_what_lies_behind_the_end_marker_does_no_harm(tmp_path: Path) -> None:
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
        np.testing.assert_array_equal(decode_grey_jpeg(stream), decode_jpeg(stream))
        np.testing.assert_array_equal(decode_grey_jpeg(strip_jpeg_metadata(stream)), decode_jpeg(stream))


def test_a_plain_film_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    decode = simplejpeg.decode_jpeg

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append("one")
        return decode(*arguments, **more)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    monkeypatch.setattr("shards.dicom.pixels.get_decoder", lambda syntax: pytest.fail("pydicom decoded it too"))
    assert read_film(write(tmp_path, encode_jpeg(FILM))).jpeg is not None
    assert calls == ["one"]


def lossless(pixels: Pixels) -> bytes:
    values = pixels.astype(int)
    predicted = np.empty_like(values)
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = values[:, :-1], values[:-1, 0], 2048
    return huffman_jpeg(0xC3, 12, pixels.shape, (values - predicted).ravel().tolist(), is_dct=False)


def extended(pixels: Pixels) -> bytes:
    levels = np.diff(pixels[::8, ::8].astype(int).ravel() - 2048, prepend=0)
    return huffman_jpeg(0xC1, 12, pixels.shape, levels.tolist(), is_dct=True)


DEEP = np.kron(np.random.default_rng(1).integers(0, 4096, (10, 12)), np.ones((8, 8), int)).astype(np.uint16)
WITH_BORDER = np.where(np.arange(80)[:, None] < 40, DEEP, 100).astype(np.uint16)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [(uid.JPEGLosslessSV1, lossless), (uid.JPEGExtended12Bit, extended)],
    ids=["lossless", "12 bits"],
)
def test_a_scan_whose_decoder_says_nothing_is_refused_where_it_stops_early(
    tmp_path: Path, syntax: uid.UID, encode: Any
) -> None:
    bits = {"BitsStored": 12, "HighBit": 11}
    for good in (DEEP, WITH_BORDER):  # a border of one value looks as a scan that stops early
        film = read_film(write(tmp_path, encode(good), good, syntax, **bits))
        assert film.image.shape == good.shape and film.warnings == ()
    stream = encode(DEEP)
    for share in (0.5, 0.8):
        cut = stream[: int(len(stream) * share)].rstrip(b"\xff")
        for damaged in (cut, cut + END):
            with pytest.raises(RejectedFilm, match="its scan stops early"):
                read_film(write(tmp_path, damaged, DEEP, syntax, **bits))


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless], ids=lambda s: s.name)
def test_other_streams_that_stop_early_are_refused(tmp_path: Path, syntax: uid.UID) -> None:
    path = recode(write_film(tmp_path / "a.dcm", DEEP, BitsStored=12, HighBit=11), syntax)
    frame = get_frame(dcmread(path).PixelData, 0, number_of_frames=1)
    for share in (0.5, 0.9):
        cut = frame[: int(len(frame) * share)]
        for damaged in (cut, cut + END):
            with pytest.raises(RejectedFilm):
                read_film(write(tmp_path, damaged, DEEP, syntax, BitsStored=12, HighBit=11))


def test_a_picture_without_all_its_tiles_is_refused(tmp_path: Path) -> None:
    path = recode(write_film(tmp_path / "a.dcm", DEEP, BitsStored=12, HighBit=11), uid.JPEG2000Lossless)
    frame = bytearray(get_frame(dcmread(path).PixelData, 0, number_of_frames=1))
    size = frame.index(b"\xff\x51")
    rows, columns = DEEP.shape
    frame[size + 6 : size + 14] = (columns * 2).to_bytes(4, "big") + (rows * 3).to_bytes(4, "big")
    large = np.tile(DEEP, (3, 2))
    with pytest.raises(RejectedFilm, match="lacks tiles"):
        read_film(write(tmp_path, bytes(frame), large, uid.JPEG2000Lossless, BitsStored=12, HighBit=11))
