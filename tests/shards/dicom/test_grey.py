"""Stored values to 8-bit grey, against references that compute pixel by pixel."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from dicom_films import RAMP12, SMALL_FILM, naive_unit, read
from dicom_streams import encode_jpeg, recode
from film_files import write_film
from hypothesis import given, settings
from hypothesis import strategies as st
from images import decode
from pydicom import uid
from pydicom.dataset import Dataset

from shards.dicom.film import read_film
from shards.errors import RejectedFilm

DEEP = SMALL_FILM.astype(np.uint16) * 16
STORED12 = {"BitsStored": 12, "HighBit": 11}
PLACEHOLDER = "its window or lookup table leaves hardly any greys: taken without it"


def window(center: float, width: float, **more: Any) -> dict[str, Any]:
    return {"WindowCenter": str(center), "WindowWidth": str(width), **more}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("width", [1, 2, 60])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_that_leaves_two_greys_is_not_applied(
    tmp_path: Path, photometric: str, width: int, function: str
) -> None:
    tags = {**STORED12, "PhotometricInterpretation": photometric}
    expected = read_film(write_film(tmp_path / "a.dcm", DEEP, **tags))
    film = read_film(write_film(tmp_path / "b.dcm", DEEP, **tags, **window(2000, width, VOILUTFunction=function)))
    if width == 60 and function == "SIGMOID":  # its tails remain grey
        assert film.warnings == ()
        return
    np.testing.assert_array_equal(film.image, expected.image)
    assert film.warnings == (PLACEHOLDER,)


def test_a_lookup_table_that_leaves_two_greys_is_not_applied(tmp_path: Path) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 8])
    item.add_new("LUTData", "US", [0] * 2000 + [255] * 2096)
    film = read_film(write_film(tmp_path / "a.dcm", DEEP, **STORED12, VOILUTSequence=[item]))
    np.testing.assert_array_equal(film.image, read_film(write_film(tmp_path / "b.dcm", DEEP, **STORED12)).image)
    assert film.warnings == (PLACEHOLDER,)


def test_a_window_of_other_data_that_leaves_few_greys_is_not_applied(tmp_path: Path) -> None:
    film = read_film(write_film(tmp_path / "a.dcm", SMALL_FILM, **window(2048, 4096)))
    np.testing.assert_array_equal(film.image, SMALL_FILM)
    assert film.warnings == (PLACEHOLDER,)


def test_a_plain_stream_behind_a_placeholder_window_is_handed_out(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.dcm", SMALL_FILM, **window(128, 1))
    film = read_film(recode(path, uid.JPEGBaseline8Bit, [encode_jpeg(SMALL_FILM)]))
    assert film.warnings == (PLACEHOLDER,)
    assert film.jpeg is not None
    np.testing.assert_array_equal(decode(film.jpeg), film.image)


@pytest.mark.parametrize("width", [1, 4096])
def test_a_film_of_few_values_keeps_its_window(tmp_path: Path, width: int) -> None:
    few = (DEEP // 512 * 512).astype(np.uint16)
    film = read_film(write_film(tmp_path / "a.dcm", few, **STORED12, **window(2000, width)))
    assert film.warnings == ()
    if width == 1:
        np.testing.assert_array_equal(film.image, np.where(few > 1999.5, 255, 0))


def test_black_and_white_borders_do_not_make_a_window_a_placeholder(tmp_path: Path) -> None:
    wide = np.zeros((400, 600), np.uint16)
    wide[:96, :96] = np.clip(DEEP, 300, 3000)
    wide[200:] = 4095
    film = read_film(write_film(tmp_path / "a.dcm", wide, **STORED12, **window(1500, 2000)))
    greys = np.count_nonzero((film.image > 0) & (film.image < 255))
    assert greys < 0.05 * film.image.size
    assert film.warnings == ()
    assert set(np.unique(film.image[200:])) == {255}


def test_a_faint_film_keeps_the_window_that_is_not_to_blame(tmp_path: Path) -> None:
    faint = SMALL_FILM // 20 + 100
    film = read_film(write_film(tmp_path / "a.dcm", faint, **window(128, 256)))
    np.testing.assert_array_equal(film.image, faint)
    assert film.warnings == ()


@settings(max_examples=60, deadline=None)
@given(center=st.integers(-500, 5000), width=st.integers(1, 9000))
def test_every_window_leaves_greys_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, center: int, width: int
) -> None:
    path = write_film(tmp_path_factory.mktemp("film") / "a.dcm", DEEP, **STORED12, **window(center, width))
    try:
        film = read_film(path)
    except RejectedFilm as reason:
        assert "one value" in str(reason)
        return
    assert film.warnings in ((), (PLACEHOLDER,))
    grey = np.count_nonzero((film.image > 0) & (film.image < 255))
    low, high = int(DEEP.min()), int(DEEP.max())
    between = np.count_nonzero(np.isin(DEEP, [low, high], invert=True))
    assert grey >= 0.05 * between


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [4, 6, 7, 8])
def test_bytes_of_fewer_bits_span_all_greys(tmp_path: Path, photometric: str, bits: int) -> None:
    values = SMALL_FILM >> (8 - bits)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": photometric}
    unit = values / ((1 << bits) - 1)
    expected = np.rint((1 - unit if photometric == "MONOCHROME1" else unit) * 255)
    film = read_film(write_film(tmp_path / "a.dcm", values, **tags))
    np.testing.assert_array_equal(film.image, expected)
    assert film.warnings == ()


WriteFilm = Callable[..., Path]
Pixels = npt.NDArray[Any]


def test_plain_8_bit_pixels_are_kept_bit_for_bit(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12) * 2
    np.testing.assert_array_equal(read(write_film(tmp_path / "a.dcm", pixels)).image, pixels)


def test_monochrome1_is_shown_dark_where_there_is_air(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12)
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(film).image, 255 - pixels)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_deep_pixels_without_a_window_span_their_own_range(
    tmp_path: Path, write_film: WriteFilm, photometric: str
) -> None:
    film = write_film(tmp_path / "a.dcm", RAMP12, PhotometricInterpretation=photometric, BitsStored=12, HighBit=11)
    low, high = int(RAMP12.min()), int(RAMP12.max())
    assert read(film).image.tolist() == naive_unit(RAMP12, low, high, photometric == "MONOCHROME1")


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
    got = read(film).image.astype(int)
    np.testing.assert_array_equal(got, expected)
    assert {0, 255} <= set(got.ravel().tolist())


def test_the_window_counts_rescaled_values(tmp_path: Path, write_film: WriteFilm) -> None:
    attributes = {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": "2000", "WindowWidth": "3001"}
    film = write_film(tmp_path / "a.dcm", RAMP12, BitsStored=12, HighBit=11, **attributes)
    values = RAMP12.astype(float) * 2 - 1000
    assert read(film).image.tolist() == naive_unit(values, 499.5, 3499.5)


def test_a_voi_lookup_table_is_applied(tmp_path: Path, write_film: WriteFilm) -> None:
    table = [value * value for value in range(200)]
    lookup = Dataset()
    lookup.add_new("LUTDescriptor", "US", [200, 0, 16])
    lookup.add_new("LUTData", "US", table)
    pixels = np.arange(0, 240, 2, dtype=np.uint16).reshape(10, 12)
    film = write_film(tmp_path / "a.dcm", pixels, VOILUTSequence=[lookup])
    looked_up = np.array([[table[min(int(value), 199)] for value in row] for row in pixels])
    assert read(film).image.tolist() == naive_unit(looked_up, 0, table[-1])


def naive_window(value: float, center: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3 verbatim, for an output range of 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (value - center) / width))
    if function == "LINEAR_EXACT":
        if value <= center - width / 2:
            return 0.0
        return 1.0 if value > center + width / 2 else (value - center) / width + 0.5
    if value <= center - 0.5 - (width - 1) / 2:
        return 0.0
    if value > center - 0.5 + (width - 1) / 2:
        return 1.0
    return (value - (center - 0.5)) / (width - 1) + 0.5


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(1800.0, 1501.0), (2000.0, 700.0), (300.5, 900.25)])
def test_every_window_function_is_applied_to_signed_pixels_too(
    tmp_path: Path, write_film: WriteFilm, photometric: str, function: str, center: float, width: float
) -> None:
    pixels = RAMP12.astype(np.int16) - 1500
    film = write_film(
        tmp_path / "a.dcm",
        pixels,
        PhotometricInterpretation=photometric,
        VOILUTFunction=function,
        WindowCenter=str(center - 1500),
        WindowWidth=str(width),
    )
    # The naive sigmoid overflows far below the window; 100 widths below, it is 0.
    lowest = center - 1500 - 100 * width
    units = np.array(
        [[naive_window(max(float(v), lowest), center - 1500, width, function) for v in row] for row in pixels]
    )
    expected = np.rint((1 - units if photometric == "MONOCHROME1" else units) * 255)
    np.testing.assert_array_equal(read(film).image, expected)


def test_the_first_of_several_windows_is_applied(tmp_path: Path, write_film: WriteFilm) -> None:
    one = write_film(tmp_path / "a.dcm", RAMP12, WindowCenter="1800", WindowWidth="1501")
    several = write_film(tmp_path / "b.dcm", RAMP12, WindowCenter=["1800", "90"], WindowWidth=["1501", "40"])
    np.testing.assert_array_equal(read(several).image, read(one).image)


def lookup_item(entries: list[int], first: int, bits: int, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", vr, np.array(entries, "<u2").tobytes() if vr == "OW" else entries)
    return item


def naive_look_up(pixels: Pixels, entries: list[int], first: int) -> Pixels:
    return np.array([[entries[min(max(int(v) - first, 0), len(entries) - 1)] for v in row] for row in pixels])


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_a_voi_table_of_8_bit_entries_takes_12_bit_values(tmp_path: Path, write_film: WriteFilm, vr: str) -> None:
    entries = [min(255, value // 12) for value in range(3800)]
    film = write_film(tmp_path / "a.dcm", RAMP12, VOILUTSequence=[lookup_item(entries, 100, 8, vr)])
    expected = naive_look_up(RAMP12, entries, 100)
    np.testing.assert_array_equal(read(film).image, naive_unit(expected, 0, 255))


def test_8_bit_entries_may_come_two_to_a_word(tmp_path: Path, write_film: WriteFilm) -> None:
    entries = [255 - value for value in range(256)]
    item = lookup_item(entries, 0, 8, "OW")
    item.LUTData = bytes(entries)
    pixels = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
    np.testing.assert_array_equal(
        read(write_film(tmp_path / "a.dcm", pixels, VOILUTSequence=[item])).image, 255 - pixels
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_modality_table_is_applied_to_signed_pixels(tmp_path: Path, write_film: WriteFilm, photometric: str) -> None:
    entries = [(value * 7) % 5003 for value in range(2000)]
    pixels = (RAMP12.astype(np.int32) * 16 - 32768).astype(np.int16)
    item = lookup_item(entries, -10000, 16)
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric, ModalityLUTSequence=[item])
    values = naive_look_up(pixels, entries, -10000)
    expected = naive_unit(values, values.min(), values.max(), photometric == "MONOCHROME1")
    assert read(film).image.tolist() == expected


def test_a_window_after_a_modality_table_counts_its_output(tmp_path: Path, write_film: WriteFilm) -> None:
    entries = [value * 3 for value in range(4096)]
    window = {"WindowCenter": "6000", "WindowWidth": "5001"}
    film = write_film(tmp_path / "a.dcm", RAMP12, ModalityLUTSequence=[lookup_item(entries, 0, 16)], **window)
    assert read(film).image.tolist() == naive_unit(RAMP12 * 3.0, 3499.5, 8499.5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("padding", "attributes"),
    [
        ([4095], {"PixelPaddingValue": 4095}),
        ([0], {"PixelPaddingValue": 0}),
        ([4000, 4050, 4095], {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}),
    ],
)
def test_padding_is_dark_and_does_not_stretch_the_range(
    tmp_path: Path, write_film: WriteFilm, photometric: str, padding: list[int], attributes: dict[str, int]
) -> None:
    pixels = np.arange(1000, 1120, dtype=np.uint16).reshape(10, 12)
    expected = np.zeros((10, 12), int)
    expected[2:] = naive_unit(pixels[2:], 1024, 1119, photometric == "MONOCHROME1")
    pixels[:2] = np.resize(padding, (2, 12))
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric, **attributes)
    np.testing.assert_array_equal(read(film).image, expected)


def test_padding_written_in_the_wrong_sign_is_understood(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(120, dtype=np.int16).reshape(10, 12)
    pixels[0] = -2000
    film = write_film(tmp_path / "a.dcm", pixels)
    content = pydicom.dcmread(film)
    content.add_new("PixelPaddingValue", "US", 65536 - 2000)
    content.save_as(film)
    np.testing.assert_array_equal(read(film).image, naive_unit(pixels, 12, 119))
