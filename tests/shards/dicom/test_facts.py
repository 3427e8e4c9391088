"""Facts that are stored with a film, and the shape of its pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_films import SMALL_FILM, read
from film_files import write_film
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from shards.dicom.facts import pixel_aspect
from shards.dicom.film import parse_age, read_film

WriteFilm = Callable[..., Path]


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
    info = read(film).info
    assert (info.patient_id, info.view, info.sex, info.age) == ("p7", "PA", "F", 90)
    assert (info.spacing_row, info.spacing_column, info.spacing_tag) == (0.2, 0.3, "ImagerPixelSpacing")
    assert "Doe" not in repr(info)


def test_a_spacing_of_nothing_is_unknown(tmp_path: Path, write_film: WriteFilm) -> None:
    info = read(write_film(tmp_path / "a.dcm", np.eye(8, dtype=np.uint8), PixelSpacing=["0.000", "0.000"])).info
    assert (info.spacing_row, info.spacing_column, info.spacing_tag) == (None, None, "")


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


NO_SHAPE = "its pixel spacing or aspect ratio is not plausible: taken as square pixels"
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
    film = read_film(write_film(tmp_path / "a.dcm", SMALL_FILM, **tags))
    assert film.aspect == pytest.approx(aspect)
    assert (aspect == 1.0) == (film.aspect == 1.0)
    assert film.info.spacing_tag == (spacing or "")
    assert (film.info.spacing_row is None) == (spacing is None)
    assert film.warnings == warnings
    np.testing.assert_array_equal(film.image, SMALL_FILM)  # on the file's grid


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_no_aspect_is_beyond_belief(row: float, column: float) -> None:
    dataset = Dataset()
    dataset.PixelSpacing = [f"{row:.8g}", f"{column:.8g}"]
    aspect, warnings = pixel_aspect(dataset)
    assert 0.25 <= aspect <= 4.0
    assert bool(warnings) == (aspect == 1.0 and not 0.25 <= row / column <= 4.0) or row / column == pytest.approx(4.0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("view", "sex", "kept"),
    [
        ("PA MUELLER", "F", ("PA", "F")),
        ("MUELLER^HANS", "MUELLER^HANS", ("", "")),
        ("=1+1", "=1+1", ("", "")),
        ("AP \x1b[31m", "male", ("AP", "MALE")),
    ],
)
def test_a_name_in_a_code_is_not_kept(
    tmp_path: Path, write_film: WriteFilm, view: str, sex: str, kept: tuple[str, str]
) -> None:
    info = read(write_film(tmp_path / "a.dcm", np.eye(8, dtype=np.uint8), ViewPosition=view, PatientSex=sex)).info
    assert (info.view, info.sex) == kept
