"""Frames that contradict their tags are refused; possible errors are warnings."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from dicom_streams import encode_jpeg, huffman_jpeg, recode
from film_files import film_dataset, write_film
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

from shards.dicom.film import FilmRules, read_film
from shards.dicom.frame import Layout
from shards.dicom.pixels import cut_bits
from shards.errors import RejectedFilm
from shards.phantom.dataset import render_film

Pixels = npt.NDArray[Any]

ANY_FILM = FilmRules(any_film=True)
BYTES = np.ascontiguousarray(render_film(np.random.default_rng(5), 96, True).image[:, :80])
WORDS = BYTES.astype(np.uint16) * 16 + np.random.default_rng(0).integers(0, 16, BYTES.shape, np.uint16)
ROWS, COLUMNS = BYTES.shape
WRAPPED = "its values have more bits than Bits Stored: the upper ones are cut off"


def lossless_stream() -> bytes:
    values = WORDS.astype(int)
    predicted = np.empty_like(values)
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = values[:, :-1], values[:-1, 0], 2048
    return huffman_jpeg(0xC3, 12, (ROWS, COLUMNS), (values - predicted).ravel().tolist(), is_dct=False)


def extended_stream() -> bytes:
    levels = np.diff(WORDS[::8, ::8].astype(int).ravel() - 2048, prepend=0)
    return huffman_jpeg(0xC1, 12, (ROWS, COLUMNS), levels.tolist(), is_dct=True)


# Each with its pixels, and with its stream if pydicom has no encoder.
SYNTAXES: dict[str, tuple[uid.UID, Pixels, Callable[[], bytes] | None]] = {
    "rle": (uid.RLELossless, WORDS, None),
    "rle of bytes": (uid.RLELossless, BYTES, None),
    "jpeg 2000": (uid.JPEG2000Lossless, WORDS, None),
    "jpeg-ls": (uid.JPEGLSLossless, WORDS, None),
    "lossless": (uid.JPEGLosslessSV1, WORDS, lossless_stream),
    "extended": (uid.JPEGExtended12Bit, WORDS, extended_stream),
    "baseline": (uid.JPEGBaseline8Bit, BYTES, lambda: encode_jpeg(BYTES)),
    "progressive": (uid.JPEGBaseline8Bit, BYTES, lambda: encode_jpeg(BYTES, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
}


def with_frames(dataset: Dataset, content: bytes, path: Path, **attributes: Any) -> Path:
    """Write a compressed film whose pixel data element is `content`."""
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = content
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def compressed(name: str) -> tuple[Dataset, bytes]:
    """A film in a transfer syntax, and its only frame."""
    syntax, pixels, stream = SYNTAXES[name]
    bits = 12 if pixels.dtype == np.uint16 else 8
    dataset = film_dataset(pixels, BitsStored=bits, HighBit=bits - 1)
    if stream is None:
        dataset.compress(syntax)
        return dataset, get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset, stream()


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_stream_of_another_size_than_rows_and_columns_is_refused(tmp_path: Path, name: str) -> None:
    dataset, frame = compressed(name)
    content = encapsulate([frame])
    good = read_film(with_frames(dataset, content, tmp_path / "good.dcm"))
    assert good.image.shape == (ROWS, COLUMNS) and good.warnings == ()
    for rows, columns in ((COLUMNS, ROWS), (ROWS - 8, COLUMNS), (ROWS, COLUMNS - 1), (ROWS + 1, COLUMNS)):
        path = with_frames(dataset, content, tmp_path / "a.dcm", Rows=rows, Columns=columns)
        # RLE shows rows and the number of bytes, but no size.
        with pytest.raises(RejectedFilm, match=f"{columns}x{rows}|Columns is {columns}|RLE"):
            read_film(path)


@pytest.mark.parametrize("name", [name for name in SYNTAXES if "rle" not in name])
def test_a_stream_of_another_number_of_samples_is_refused(tmp_path: Path, name: str) -> None:
    dataset, frame = compressed(name)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    path = with_frames(dataset, encapsulate([frame]), tmp_path / "a.dcm", **tags)
    with pytest.raises(RejectedFilm, match="has 1 samples per pixel, Samples per Pixel says 3"):
        read_film(path)


@pytest.mark.parametrize("name", SYNTAXES)
def test_fragments_make_a_frame_and_empty_ones_nothing(tmp_path: Path, name: str) -> None:
    dataset, frame = compressed(name)
    expected = read_film(with_frames(dataset, encapsulate([frame]), tmp_path / "a.dcm"))
    pieces = 1 if "rle" in name else 3
    content = encapsulate([frame], fragments_per_frame=pieces, has_bot=False) + b"\xfe\xff\x00\xe0\0\0\0\0" * 2
    got = read_film(with_frames(dataset, content, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(got.image, expected.image)
    assert (got.warnings, got.jpeg) == ((), expected.jpeg)


@pytest.mark.parametrize("has_bot", [True, False])
@pytest.mark.parametrize("name", SYNTAXES)
def test_frames_that_number_of_frames_keeps_back_are_refused(tmp_path: Path, name: str, has_bot: bool) -> None:
    dataset, frame = compressed(name)
    path = with_frames(dataset, encapsulate([frame] * 2, has_bot=has_bot), tmp_path / "a.dcm")
    with pytest.raises(RejectedFilm, match="contain 2 frames, Number of Frames says 1"):
        read_film(path, ANY_FILM)
    path = with_frames(dataset, encapsulate([frame] * 2, has_bot=has_bot), tmp_path / "a.dcm", NumberOfFrames="2")
    got = read_film(path, ANY_FILM)
    assert got.image.shape == (ROWS, COLUMNS)
    assert got.warnings == ("only the first of its 2 frames is taken",)


def plain_rle(pixels: Pixels) -> bytes:
    """One segment of runs that ignore rows, as some writers make them."""
    content, runs, at = pixels.tobytes(), b"", 0
    while at < len(content):
        same = 1
        while same < 128 and content[at + same : at + same + 1] == content[at : at + 1]:
            same += 1
        if same > 2:
            runs += bytes([257 - same]) + content[at : at + 1]
            at += same
        else:
            piece = content[at : at + 16]
            runs += bytes([len(piece) - 1]) + piece
            at += 16
    return struct.pack("<16L", 1, 64, *[0] * 14) + runs


def test_rle_runs_that_cross_rows_are_a_warning(tmp_path: Path) -> None:
    dataset, _ = compressed("rle of bytes")
    got = read_film(with_frames(dataset, encapsulate([plain_rle(BYTES)]), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(got.image, BYTES)
    assert got.warnings[0] == "its RLE runs cross the ends of its rows: Columns may be wrong"


def test_a_film_whose_columns_are_twice_its_rows_may_be_one_on_its_side(tmp_path: Path) -> None:
    tall = np.ascontiguousarray(render_film(np.random.default_rng(6), 160, True).image[:, :80])
    dataset = film_dataset(tall)
    dataset.compress(uid.RLELossless)
    pydicom.dcmwrite(tmp_path / "a.dcm", dataset, enforce_file_format=True)
    np.testing.assert_array_equal(read_film(tmp_path / "a.dcm").image, tall)
    dataset.Rows, dataset.Columns = 80, 160
    pydicom.dcmwrite(tmp_path / "a.dcm", dataset, enforce_file_format=True)
    with pytest.raises(RejectedFilm, match="rows of 80 pixels, Columns is 160"):
        read_film(tmp_path / "a.dcm")
    wide = film_dataset(np.ascontiguousarray(tall.T))
    wide.compress(uid.RLELossless)
    pydicom.dcmwrite(tmp_path / "b.dcm", wide, enforce_file_format=True)
    film = read_film(tmp_path / "b.dcm")
    np.testing.assert_array_equal(film.image, tall.T)
    assert film.warnings == ()


def test_noise_coded_without_regard_to_rows_does_not_show_others(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (96, 80), np.uint8)
    content = noise.tobytes()
    literal = b"".join(b"\x7f" + content[at : at + 128] for at in range(0, len(content), 128))
    dataset, _ = compressed("rle of bytes")
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + literal
    got = read_film(with_frames(dataset, encapsulate([frame]), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(got.image, noise)
    assert "cross the ends of its rows" in got.warnings[0]


def test_rle_data_longer_than_the_frame_by_more_than_a_byte_are_refused(tmp_path: Path) -> None:
    dataset, frame = compressed("rle of bytes")
    padded = read_film(with_frames(dataset, encapsulate([frame + b"\0\7"]), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(padded.image, BYTES)
    path = with_frames(dataset, encapsulate([frame + b"\0\7" * 2]), tmp_path / "a.dcm")
    with pytest.raises(RejectedFilm, match="RLE data contain more than Columns x Rows of 80x96"):
        read_film(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": ROWS // 2}, "15360 bytes long, Columns x Rows of 80x48 take 7680"),
        ({"Columns": COLUMNS - 1}, "15360 bytes long, Columns x Rows of 79x96 take 15168"),
        ({"Rows": ROWS + 1}, "take 15520"),
        ({"Rows": 0}, "it is 80x0 pixels large"),
        ({"NumberOfFrames": "2"}, "15360 bytes long, Columns x Rows of 2 frames of 80x96 take 30720"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "take 46080"),
    ],
    ids=str,
)
def test_native_pixels_of_another_length_are_refused(
    tmp_path: Path, syntax: uid.UID, attributes: dict[str, Any], reason: str
) -> None:
    path = recode(write_film(tmp_path / "a.dcm", WORDS, BitsStored=12, HighBit=11, **attributes), syntax)
    with pytest.raises(RejectedFilm, match=reason):
        read_film(path, ANY_FILM)


@pytest.mark.parametrize(("excess", "taken"), [(0, True), (2, True), (78, True), (80, False), (96, False)])
def test_a_few_bytes_more_than_a_frame_are_padding_and_a_line_more_is_not(
    tmp_path: Path, excess: int, taken: bool
) -> None:
    path = write_film(tmp_path / "a.dcm", BYTES, PixelData=BYTES.tobytes() + b"\0" * excess)
    if not taken:
        with pytest.raises(RejectedFilm, match=f"{7680 + excess} bytes long"):
            read_film(path)
        return
    got = read_film(path)
    np.testing.assert_array_equal(got.image, BYTES)
    expected = ("its pixel data is a few bytes longer than its frames: taken as padding",) if excess else ()
    assert got.warnings == expected


def test_frames_of_an_odd_number_of_bytes_are_no_padding(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(65, dtype=np.uint8), (65, 1))
    assert read_film(write_film(tmp_path / "a.dcm", pixels)).warnings == ()
    twice = write_film(tmp_path / "b.dcm", pixels, NumberOfFrames="2", PixelData=pixels.tobytes() * 2)
    np.testing.assert_array_equal(read_film(twice, ANY_FILM).image, pixels)


@pytest.mark.parametrize("high_bit", [15, 12, 10])
def test_values_that_do_not_fill_the_lowest_bits_are_refused(tmp_path: Path, high_bit: int) -> None:
    path = write_film(tmp_path / "a.dcm", WORDS << 4, BitsStored=12, HighBit=high_bit)
    with pytest.raises(RejectedFilm, match=f"High Bit is {high_bit} and Bits Stored 12"):
        read_film(path, ANY_FILM)


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless]
)
def test_bits_above_those_stored_are_cut_off_with_a_warning(tmp_path: Path, syntax: uid.UID) -> None:
    expected = read_film(write_film(tmp_path / "a.dcm", WORDS, BitsStored=12, HighBit=11))
    assert expected.warnings == ()
    dataset = film_dataset(WORDS | 0xA000)
    if syntax.is_encapsulated:
        dataset.compress(syntax)
    dataset.BitsStored, dataset.HighBit = 12, 11
    pydicom.dcmwrite(tmp_path / "b.dcm", dataset, enforce_file_format=True)
    got = read_film(tmp_path / "b.dcm")
    np.testing.assert_array_equal(got.image, expected.image)
    assert got.warnings == (WRAPPED,)


def test_an_overlay_in_the_upper_bits_is_no_warning(tmp_path: Path) -> None:
    dataset = film_dataset(WORDS | 0x8000, BitsStored=12, HighBit=11)
    dataset.add_new((0x6000, 0x0102), "US", 15)
    pydicom.dcmwrite(tmp_path / "a.dcm", dataset, enforce_file_format=True)
    got = read_film(tmp_path / "a.dcm")
    plain = read_film(write_film(tmp_path / "b.dcm", WORDS, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(got.image, plain.image)
    assert got.warnings == ()


def layout(bits: int, is_signed: bool) -> Layout:
    return Layout(1, 1, 1, 1, 16, bits, is_signed, "MONOCHROME2")


@given(st.integers(2, 16), st.booleans(), st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_the_stored_bits_are_the_values(bits: int, is_signed: bool, raw: list[int]) -> None:
    words = np.array([raw], np.uint16)
    values, has_more = cut_bits(words.view(np.int16) if is_signed else words, layout(bits, is_signed))
    low = [word % (1 << bits) for word in raw]
    expected = [value - (1 << bits) if is_signed and value >> (bits - 1) else value for value in low]
    assert values.ravel().tolist() == expected
    if not is_signed:
        assert has_more == any(word >= 1 << bits for word in raw)
    else:
        # No warning if every word is the value, with the sign in all upper bits or in none.
        filled = all(int(word) == value for word, value in zip(words.view(np.int16).ravel(), expected, strict=True))
        assert not (has_more and (filled or low == raw))


@given(st.binary(max_size=400))
def test_any_bytes_as_a_frame_are_refused_or_read_but_never_a_fault(content: bytes) -> None:
    from shards.dicom import stream

    for read in (stream.jpeg_header, stream.jpeg_2000_header, stream.rle_segments):
        for start in (b"", b"\xff\xd8", b"\xff\x4f\xff\x51", b"\1\0\0\0@\0\0\0"):
            try:
                read(start + content)
            except RejectedFilm:
                continue
    ends = stream.rle_run_ends(content, 10_000, 10_000)
    assert ends == sorted(ends)
    stream.other_row_length(ends, 100, 100)
