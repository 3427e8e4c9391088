"""DICOM to 8 bits against pixel-by-pixel references, and a reason for every film that is no readable grey film."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

from shards.dicom import parse_age, read_film
from shards.errors import RejectedFilm

WriteFilm = Callable[..., Path]

RAMP12 = np.arange(0, 4096, 37, dtype=np.uint16)[:110].reshape(10, 11)


def naive_unit(values: npt.NDArray[Any], low: float, high: float, inverted: bool = False) -> list[list[int]]:
    def one(value: float) -> int:
        unit = min(max((value - low) / (high - low), 0.0), 1.0)
        return round((1.0 - unit if inverted else unit) * 255.0)

    return [[one(float(value)) for value in row] for row in values]


def test_plain_8_bit_pixels_are_kept_bit_for_bit(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12) * 2
    np.testing.assert_array_equal(read_film(write_film(tmp_path / "a.dcm", pixels)).image, pixels)


def test_monochrome1_is_shown_dark_where_there_is_air(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12)
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_film(film).image, 255 - pixels)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_deep_pixels_without_a_window_span_their_own_range(
    tmp_path: Path, write_film: WriteFilm, photometric: str
) -> None:
    film = write_film(tmp_path / "a.dcm", RAMP12, PhotometricInterpretation=photometric, BitsStored=12, HighBit=11)
    low, high = int(RAMP12.min()), int(RAMP12.max())
    assert read_film(film).image.tolist() == naive_unit(RAMP12, low, high, photometric == "MONOCHROME1")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_window_is_applied_by_the_standards_formula(tmp_path: Path, write_film: WriteFilm, photometric: str) -> None:
    center, width = 1800.0, 1501.0
    film = write_film(
        tmp_path / "a.dcm",
        RAMP12,
        PhotometricInterpretation=photometric,
        BitsStored=12,
        HighBit=11,
        WindowCenter=str(center),
        WindowWidth=str(width),
    )
    # PS3.3 C.11.2.1.2.1: black below c - 0.5 - (w-1)/2, white above c - 0.5 + (w-1)/2, linear between.
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    expected = np.array(naive_unit(RAMP12, low, high, photometric == "MONOCHROME1"))
    got = read_film(film).image.astype(int)
    np.testing.assert_array_equal(got, expected)
    assert {0, 255} <= set(got.ravel().tolist())


def test_the_window_counts_rescaled_values(tmp_path: Path, write_film: WriteFilm) -> None:
    attributes = {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": "2000", "WindowWidth": "3001"}
    film = write_film(tmp_path / "a.dcm", RAMP12, BitsStored=12, HighBit=11, **attributes)
    values = RAMP12.astype(float) * 2 - 1000
    assert read_film(film).image.tolist() == naive_unit(values, 499.5, 3499.5)


def test_a_voi_lookup_table_is_applied(tmp_path: Path, write_film: WriteFilm) -> None:
    table = [value * value for value in range(200)]
    lookup = Dataset()
    lookup.add_new("LUTDescriptor", "US", [200, 0, 16])
    lookup.add_new("LUTData", "US", table)
    pixels = np.arange(0, 240, 2, dtype=np.uint16).reshape(10, 12)
    film = write_film(tmp_path / "a.dcm", pixels, VOILUTSequence=[lookup])
    looked_up = np.array([[table[min(int(value), 199)] for value in row] for row in pixels])
    assert read_film(film).image.tolist() == naive_unit(looked_up, 0, table[-1])


def test_colour_films_become_grey_by_rec_601(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    image = read_film(write_film(tmp_path / "a.dcm", pixels)).image
    naive = [[round(float(0.299 * r + 0.587 * g + 0.114 * b)) for r, g, b in row] for row in pixels.tolist()]
    assert image.tolist() == naive


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
def test_only_the_facts_that_training_may_know_are_kept(tmp_path: Path, write_film: WriteFilm) -> None:
    film = write_film(
        tmp_path / "a.dcm",
        np.eye(8, dtype=np.uint8),
        PatientID=" p7 ",
        PatientName="Doe^Jane",
        ViewPosition="pa",
        PatientSex="F",
        PatientAge="093Y",
        ImagerPixelSpacing=["0.2", "0.3"],
    )
    info = read_film(film).info
    assert (info.patient_id, info.view, info.sex, info.age) == ("p7", "PA", "F", 90)
    assert (info.spacing_row, info.spacing_column, info.spacing_tag) == (0.2, 0.3, "ImagerPixelSpacing")
    assert "Doe" not in repr(info)


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("038Y", 38),
        ("38", 38),
        ("011M", 0),
        ("30M", 2),
        ("104W", 2),
        ("800D", 2),
        ("89Y", 89),
        ("91", 90),
        ("", None),
        ("Y", None),
        ("old", None),
        ("-5", None),
    ],
)
def test_ages_are_whole_years_pooled_at_ninety(text: str, age: int | None) -> None:
    assert parse_age(text) == age


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PixelData": None}, "no pixel data"),
        ({"NumberOfFrames": "3"}, "multi-frame"),
        ({"PixelData": b"\0" * 10}, "cannot be decoded"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, "Photometric"),
        ({"Rows": None}, "cannot be decoded"),
        ({"WindowCenter": "0", "WindowWidth": "-5"}, "lookup"),
    ],
)
def test_what_is_no_single_grey_film_is_rejected(
    tmp_path: Path, write_film: WriteFilm, attributes: dict[str, Any], reason: str
) -> None:
    film = write_film(tmp_path / "a.dcm", np.eye(8, dtype=np.uint8), **attributes)
    with pytest.raises(RejectedFilm, match=reason):
        read_film(film)


def test_a_constant_deep_film_is_rejected(tmp_path: Path, write_film: WriteFilm) -> None:
    with pytest.raises(RejectedFilm, match="one value"):
        read_film(write_film(tmp_path / "a.dcm", np.full((8, 8), 700, np.uint16)))


@pytest.mark.parametrize("content", [b"", b"no film", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 400])
def test_what_is_no_dicom_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(RejectedFilm):
        read_film(tmp_path / "a.dcm")


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
        assert read_film(film).image.shape == (8, 8)
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
    outcomes = []
    for content in damaged:
        film.write_bytes(content)
        try:
            image = read_film(film).image
            outcomes.append(image.dtype == np.uint8 and image.ndim == 2)
        except RejectedFilm:
            outcomes.append(None)
    assert set(outcomes) == {True, None}


ZOO = ("966_fixed", "RG1_J2KI", "RG2_JPLY_fixed", "RG3_J2KR", "image_dfl", "mlut_18", "vlut_04")


@pytest.mark.parametrize("name", ZOO)
def test_films_of_other_makers_are_read(real_data: Path, name: str) -> None:
    image = read_film(real_data / "dicom_zoo" / f"{name}.dcm").image
    assert image.dtype == np.uint8
    assert min(image.shape) >= 64
    assert image.std() > 5


def test_a_film_without_meta_information_is_rejected_clearly(real_data: Path) -> None:
    with pytest.raises(RejectedFilm, match="meta information"):
        read_film(real_data / "dicom_zoo" / "CR-MONO1-10-chest_nometa.dcm")
