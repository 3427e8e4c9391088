"""Whole films: their own JPEG streams, a reason for every rejected film, and no crash on damaged files."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from dicom_films import ANY_FILM, CHEST, SECRET, naive_unit, read, secret
from dicom_streams import encode_jpeg, recode
from images import decode
from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from shards.dicom.film import Film, film_of, read_film, strip_jpeg_metadata
from shards.errors import RejectedFilm

WriteFilm = Callable[..., Path]
Pixels = npt.NDArray[Any]


def jpeg_film(path: Path, write_film: WriteFilm, image: Pixels, stream: bytes, **attributes: Any) -> Film:
    """Write and read a film with the shape of `image` and the frame `stream`."""
    film = write_film(path, image, **{**CHEST, **attributes})
    return read_film(recode(film, uid.JPEGBaseline8Bit, [stream]), ANY_FILM)


def test_a_plain_baseline_film_hands_out_its_own_stream(tmp_path: Path, write_film: WriteFilm, phantom: Pixels) -> None:
    stream = encode_jpeg(phantom)
    # An EXIF orientation of 180 degrees, which decoders of the film and of the stripped stream must ignore.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    tagged = stream[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + secret(0xFE) + stream[2:]
    assert not np.array_equal(decode(tagged), decode(stream))
    film = jpeg_film(tmp_path / "a.dcm", write_film, phantom, tagged)
    assert film.jpeg == strip_jpeg_metadata(stream)
    assert SECRET not in film.jpeg
    np.testing.assert_array_equal(film.image, decode(stream))
    np.testing.assert_array_equal(film.image, decode(film.jpeg))
    assert film.warnings == ()


@pytest.mark.parametrize(
    ("attributes", "is_own"),
    [
        ({"WindowCenter": "128", "WindowWidth": "256"}, True),  # maps 0..255 to 0..255
        ({"RescaleSlope": "1", "RescaleIntercept": "0"}, True),
        ({"PixelPaddingValue": 0}, True),
        ({"PixelPaddingValue": 255}, False),
        ({"WindowCenter": "120", "WindowWidth": "200"}, False),
        ({"RescaleSlope": "2", "RescaleIntercept": "0"}, False),
        ({"PhotometricInterpretation": "MONOCHROME1"}, False),
        ({"NumberOfFrames": "2"}, False),
    ],
    ids=str,
)
def test_a_stream_is_handed_out_only_where_nothing_is_done_to_it(
    tmp_path: Path, write_film: WriteFilm, phantom: Pixels, attributes: dict[str, Any], is_own: bool
) -> None:
    stream = encode_jpeg(phantom)
    path = write_film(tmp_path / "a.dcm", phantom, **CHEST, **attributes)
    frames = [stream] * int(attributes.get("NumberOfFrames", 1))
    film = read(recode(path, uid.JPEGBaseline8Bit, frames))
    assert (film.jpeg is not None) == is_own
    if film.jpeg is not None:
        np.testing.assert_array_equal(film.image, decode(film.jpeg))


def test_a_stream_without_its_end_marker_is_read_with_a_warning_and_not_handed_out(
    tmp_path: Path, write_film: WriteFilm, phantom: Pixels
) -> None:
    stream = encode_jpeg(phantom)
    film = jpeg_film(tmp_path / "a.dcm", write_film, phantom, stream[:-2])
    np.testing.assert_array_equal(film.image, decode(stream))
    assert film.jpeg is None
    assert film.warnings == ("its JPEG stream has no end marker: its picture is whole",)


def test_streams_of_other_kinds_are_not_handed_out(tmp_path: Path, write_film: WriteFilm, phantom: Pixels) -> None:
    progressive = encode_jpeg(phantom, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    film = jpeg_film(tmp_path / "a.dcm", write_film, phantom, progressive)
    assert film.jpeg is None
    np.testing.assert_array_equal(film.image, decode(progressive))
    colour = cv2.cvtColor(phantom, cv2.COLOR_GRAY2BGR)
    film = jpeg_film(
        tmp_path / "b.dcm", write_film, colour, encode_jpeg(colour), PhotometricInterpretation="YBR_FULL_422"
    )
    assert film.jpeg is None
    assert np.abs(film.image.astype(int) - phantom).max() < 20


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PixelData": None}, "no pixel data"),
        ({"NumberOfFrames": "3"}, "64 bytes long, Columns x Rows of 3 frames of 8x8 take 192"),
        ({"PixelData": b"\0" * 10}, "10 bytes long, Columns x Rows of 8x8 take 64"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, "Photometric"),
        ({"Rows": None}, "Rows is not a whole number"),
        ({"WindowCenter": "0", "WindowWidth": "-5"}, "lookup"),
        ({"WindowCenter": "5", "WindowWidth": "5", "VOILUTFunction": "CUBIC"}, "CUBIC"),
        ({"VOILUTSequence": [Dataset()]}, "lookup"),
        ({"RescaleSlope": "0", "RescaleIntercept": "5"}, "one value"),
        ({"WindowCenter": "900", "WindowWidth": "10"}, "one value"),
    ],
)
def test_a_file_that_is_not_a_single_grey_film_is_rejected(
    tmp_path: Path, write_film: WriteFilm, attributes: dict[str, Any], reason: str
) -> None:
    film = write_film(tmp_path / "a.dcm", np.eye(8, dtype=np.uint8), **attributes)
    with pytest.raises(RejectedFilm, match=reason):
        read(film)


@pytest.mark.parametrize(
    ("pixels", "attributes"),
    [
        (np.full((8, 8), 70, np.uint8), {}),
        (np.full((8, 8), 700, np.uint16), {}),
        (np.full((8, 8), 700, np.uint16), {"PixelPaddingValue": 700}),
        (np.full((8, 8), 70000, np.uint32), {}),
    ],
    ids=["8-bit", "16-bit", "padding", "32-bit"],
)
def test_a_film_of_one_value_is_rejected(
    tmp_path: Path, write_film: WriteFilm, pixels: Pixels, attributes: dict[str, Any]
) -> None:
    with pytest.raises(RejectedFilm, match="one value"):
        read(write_film(tmp_path / "a.dcm", pixels, **attributes))


def test_pixels_of_32_bits_span_their_own_range(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(64, dtype=np.uint32).reshape(8, 8) ** 2 * 100_000
    film = write_film(tmp_path / "a.dcm", pixels)
    assert read(film).image.tolist() == naive_unit(pixels, 0, 63**2 * 100_000)


@pytest.mark.parametrize("content", [b"", b"no film", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 400])
def test_a_file_that_is_not_dicom_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(RejectedFilm):
        read(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"DS\x04\x001.5 ", b"DS\x04\x00abc "),
        (b"IS\x02\x001 ", b"IS\x02\x00x "),
        (b"AS\x04\x00038Y", b"AS\x04\x00\xff\xff\xff\xff"),
        (b"DS\x08\x000.2\\0.3 ", b"DS\x08\x00x.2\\y.3 "),
    ],
    ids=["slope", "frames", "age", "spacing"],
)
def test_a_damaged_value_is_left_out_or_rejected_but_never_a_fault(
    tmp_path: Path, write_film: WriteFilm, old: bytes, new: bytes
) -> None:
    film = write_film(
        tmp_path / "a.dcm",
        np.eye(8, dtype=np.uint8),
        RescaleSlope="1.5",
        RescaleIntercept="0",
        NumberOfFrames="1",
        PatientAge="038Y",
        PixelSpacing=["0.2", "0.3"],
    )
    content = film.read_bytes()
    assert content.count(old) == 1
    film.write_bytes(content.replace(old, new))
    try:
        assert read(film).image.shape == (8, 8)
    except RejectedFilm as reason:
        assert str(reason)


def test_a_film_cut_or_flipped_anywhere_is_read_or_rejected_but_never_a_fault(
    tmp_path: Path, write_film: WriteFilm
) -> None:
    film = write_film(
        tmp_path / "a.dcm",
        np.arange(64, dtype=np.uint16).reshape(8, 8),
        PatientID="p",
        PatientAge="038Y",
        NumberOfFrames="1",
        RescaleSlope="1.5",
        RescaleIntercept="1",
        WindowCenter="40",
        WindowWidth="60",
        PixelSpacing=["0.2", "0.3"],
    )
    whole, rng = film.read_bytes(), random.Random(0)
    damaged = [whole[:length] for length in range(0, len(whole), 23)]
    for _ in range(250):
        flipped = bytearray(whole)
        flipped[rng.randrange(132, len(whole))] = rng.randrange(256)
        damaged.append(bytes(flipped))
    outcomes: list[bool | None] = []
    for content in damaged:
        film.write_bytes(content)
        try:
            image = read(film).image
            outcomes.append(image.dtype == np.uint8 and image.ndim == 2)
        except RejectedFilm:
            outcomes.append(None)
    assert set(outcomes) == {True, None}


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.RLELossless], ids=lambda s: s.name)
def test_a_compressed_film_flipped_anywhere_is_read_or_rejected_but_never_a_fault(
    tmp_path: Path, write_film: WriteFilm, phantom: Pixels, syntax: uid.UID
) -> None:
    film = write_film(tmp_path / "a.dcm", phantom[:48, :48], **CHEST)
    recode(film, syntax, [encode_jpeg(phantom[:48, :48])] if syntax == uid.JPEGBaseline8Bit else None)
    whole, rng = film.read_bytes(), random.Random(0)
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.randrange(132, len(whole))] = rng.randrange(256)
        film.write_bytes(flipped)
        try:
            got = read(film)
            assert got.image.dtype == np.uint8
            assert got.jpeg is None or decode(got.jpeg).shape == got.image.shape
        except RejectedFilm as reason:
            assert "\n" not in str(reason)


# The reason to reject each without --any-film; empty if the film does not say what it shows.
ZOO = {
    "966_fixed": "",
    "CR-MONO1-10-chest_nometa": "",
    "RG1_J2KI": "",
    "RG2_JPLY_fixed": "body part is HIP",
    "RG3_J2KR": "body part is EXTREMITY",
    "image_dfl": "",
    "mlut_18": "",
    "vlut_04": "",
}


@pytest.mark.parametrize("name", ZOO)
def test_films_of_other_makers_are_read(real_data: Path, name: str) -> None:
    path = real_data / "dicom_zoo" / f"{name}.dcm"
    film = read_film(path, ANY_FILM)
    assert film.image.dtype == np.uint8
    assert min(film.image.shape) >= 64
    assert film.image.std() > 5
    assert film.jpeg is None
    if ZOO[name]:
        with pytest.raises(RejectedFilm, match=f"{ZOO[name]}.*--any-film"):
            read_film(path)
    else:
        np.testing.assert_array_equal(read_film(path).image, film.image)


@pytest.mark.parametrize("name", ["966_fixed", "CR-MONO1-10-chest_nometa", "RG1_J2KI"])
def test_the_spine_of_a_chest_film_is_brighter_than_its_lungs(real_data: Path, name: str) -> None:
    image = read_film(real_data / "dicom_zoo" / f"{name}.dcm").image
    height, width = image.shape
    rows = image[int(height * 0.3) : int(height * 0.5)]
    spine = rows[:, int(width * 0.45) : int(width * 0.55)].mean()
    assert spine > rows[:, int(width * 0.15) : int(width * 0.35)].mean() + 20


def test_the_competitions_films_hand_out_their_own_streams(real_data: Path) -> None:
    paths = sorted((real_data / "siim_sample").glob("*.dcm"))
    assert len(paths) == 10
    for path in paths:
        film = read_film(path)
        assert film.warnings == ()
        assert film.jpeg is not None
        np.testing.assert_array_equal(decode(film.jpeg), film.image)


@pytest.mark.parametrize("frames", [None, "0"])
def test_a_data_set_in_memory_is_the_film_of_its_file(
    tmp_path: Path, write_film: WriteFilm, phantom: Pixels, frames: str | None
) -> None:
    more = {} if frames is None else {"NumberOfFrames": frames}
    path = write_film(tmp_path / "a.dcm", phantom, **{**CHEST, **more})
    expected, dataset = read_film(path), dcmread(path)
    found = film_of(dataset)
    np.testing.assert_array_equal(found.image, expected.image)
    assert (found.info, found.warnings, found.aspect) == (expected.info, expected.warnings, expected.aspect)
    del dataset.file_meta  # as in a data set of a network
    np.testing.assert_array_equal(film_of(dataset).image, expected.image)
    assert not hasattr(dataset, "file_meta")
    del dataset.PixelData
    with pytest.raises(RejectedFilm, match="it has no pixel data"):
        film_of(dataset)
