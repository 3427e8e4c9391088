"""Tags that say how a film is shown, where they contradict themselves or leave nothing of it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dicom_streams import encode_jpeg, recode
from film_files import film_dataset, write_film
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset

from shards.dicom.facts import pixel_aspect
from shards.dicom.film import read_film
from shards.errors import RejectedFilm
from shards.phantom.dataset import render_film

FILM = render_film(np.random.default_rng(5), 96, True).image
DEEP = FILM.astype(np.uint16) * 16
STORED12 = {"BitsStored": 12, "HighBit": 11}
PLACEHOLDER = "its window or lookup table leaves hardly any greys: taken without it"
POLARITY = "its PresentationLUTShape does not go with its Photometric Interpretation: the latter counts"
NO_SHAPE = "its pixel spacing or aspect ratio is not plausible: taken as square pixels"


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
    if width == 60 and function == "SIGMOID":  # its tails are grey
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
    film = read_film(write_film(tmp_path / "a.dcm", FILM, **window(2048, 4096)))
    np.testing.assert_array_equal(film.image, FILM)
    assert film.warnings == (PLACEHOLDER,)


def test_a_plain_stream_behind_a_placeholder_window_is_handed_out(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.dcm", FILM, **window(128, 1))
    film = read_film(recode(path, uid.JPEGBaseline8Bit, [encode_jpeg(FILM)]))
    assert film.warnings == (PLACEHOLDER,)
    assert film.jpeg is not None
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(film.jpeg, np.uint8), 0), film.image)


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
    faint = FILM // 20 + 100
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


@pytest.mark.parametrize(
    ("photometric", "shape", "warnings"),
    [
        ("MONOCHROME2", "IDENTITY", ()),
        ("MONOCHROME1", "INVERSE", ()),
        ("MONOCHROME2", "INVERSE", (POLARITY,)),
        ("MONOCHROME1", "IDENTITY", (POLARITY,)),
        ("MONOCHROME2", "LIN OD", (POLARITY,)),
    ],
)
def test_the_photometric_interpretation_counts_against_another_shape(
    tmp_path: Path, photometric: str, shape: str, warnings: tuple[str, ...]
) -> None:
    path = write_film(tmp_path / "a.dcm", FILM, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    film = read_film(path)
    np.testing.assert_array_equal(film.image, FILM if photometric == "MONOCHROME2" else 255 - FILM)
    assert film.warnings == warnings


def test_a_presentation_lut_is_a_warning(tmp_path: Path) -> None:
    film = read_film(write_film(tmp_path / "a.dcm", FILM, PresentationLUTSequence=[Dataset()]))
    assert film.warnings == ("its Presentation LUT is not applied",)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [4, 6, 7, 8])
def test_bytes_of_fewer_bits_span_all_greys(tmp_path: Path, photometric: str, bits: int) -> None:
    values = FILM >> (8 - bits)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": photometric}
    unit = values / ((1 << bits) - 1)
    expected = np.rint((1 - unit if photometric == "MONOCHROME1" else unit) * 255)
    film = read_film(write_film(tmp_path / "a.dcm", values, **tags))
    np.testing.assert_array_equal(film.image, expected)
    assert film.warnings == ()


def test_a_stream_of_fewer_bits_is_not_handed_out(tmp_path: Path) -> None:
    dark = FILM >> 1
    path = write_film(tmp_path / "a.dcm", dark, BitsStored=7, HighBit=6)
    film = read_film(recode(path, uid.JPEGBaseline8Bit, [encode_jpeg(dark)]))
    assert film.jpeg is None
    assert np.abs(film.image.astype(int) - FILM).max() < 30 and film.image.max() > 150


def test_grey_in_luma_and_chroma_that_is_called_rgb_is_its_luma(tmp_path: Path) -> None:
    planes = np.stack([FILM, np.full_like(FILM, 129), np.full_like(FILM, 126)], axis=2)
    dataset = film_dataset(FILM, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    dataset.PixelData = planes.tobytes()
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    film = read_film(tmp_path / "a.dcm")
    np.testing.assert_array_equal(film.image, FILM)
    assert film.warnings == (
        "its Photometric Interpretation is RGB, its colours are luma and chroma: the luma is taken",
    )


GOOD = ["0.143", "0.143"]


@pytest.mark.parametrize(
    ("tags", "spacing", "aspect", "warnings"),
    [
        ({}, None, 1.0, ()),
        ({"PixelSpacing": GOOD}, "PixelSpacing", 1.0, ()),
        ({"PixelSpacing": ["0", "0"], "ImagerPixelSpacing": GOOD}, "ImagerPixelSpacing", 1.0, ()),
        ({"PixelSpacing": ["0", "0"]}, None, 1.0, ()),
        ({"PixelSpacing": "0.143", "ImagerPixelSpacing": GOOD}, "ImagerPixelSpacing", 1.0, ()),
        ({"PixelSpacing": ["0.143", "143"], "ImagerPixelSpacing": GOOD}, "ImagerPixelSpacing", 1.0, ()),
        ({"PixelSpacing": ["0.143", "143"]}, None, 1.0, (NO_SHAPE,)),
        ({"PixelSpacing": ["0.2", "0.1"]}, "PixelSpacing", 2.0, ()),
        ({"PixelSpacing": ["0.1", "0.2"]}, "PixelSpacing", 0.5, ()),
        ({"PixelSpacing": ["0.1000", "0.1009"]}, "PixelSpacing", 1.0, ()),
        ({"NominalScannedPixelSpacing": ["0.2", "0.1"]}, None, 2.0, ()),
        ({"PixelAspectRatio": ["3", "2"]}, None, 1.5, ()),
        ({"PixelAspectRatio": ["1", "1"]}, None, 1.0, ()),
        ({"PixelAspectRatio": "1"}, None, 1.0, ()),
        ({"PixelAspectRatio": ["1", "50"]}, None, 1.0, (NO_SHAPE,)),
        ({"PixelAspectRatio": ["3", "2"], "PixelSpacing": GOOD}, "PixelSpacing", 1.0, ()),
        ({"PixelAspectRatio": ["3", "2"], "PixelSpacing": ["0", "0"]}, None, 1.5, ()),
    ],
    ids=str,
)
def test_the_first_plausible_tag_tells_the_shape_of_a_pixel(
    tmp_path: Path, tags: dict[str, Any], spacing: str | None, aspect: float, warnings: tuple[str, ...]
) -> None:
    film = read_film(write_film(tmp_path / "a.dcm", FILM, **tags))
    assert film.aspect == pytest.approx(aspect)
    assert (aspect == 1.0) == (film.aspect == 1.0)
    assert film.info.spacing_tag == (spacing or "")
    assert (film.info.spacing_row is None) == (spacing is None)
    assert film.warnings == warnings
    np.testing.assert_array_equal(film.image, FILM)  # on the file's own grid


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_no_aspect_is_beyond_belief(row: float, column: float) -> None:
    dataset = Dataset()
    dataset.PixelSpacing = [f"{row:.8g}", f"{column:.8g}"]
    aspect, warnings = pixel_aspect(dataset)
    assert 0.25 <= aspect <= 4.0
    assert bool(warnings) == (aspect == 1.0 and not 0.25 <= row / column <= 4.0) or row / column == pytest.approx(4.0)
