"""Which films are accepted, and the warnings about what their tags leave open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_films import ANY_FILM, CHEST, SMALL_FILM
from film_files import write_film
from pydicom.dataset import Dataset

from shards.dicom.film import FilmRules, read_film
from shards.errors import RejectedFilm

WriteFilm = Callable[..., Path]
DX, DX_FOR_PROCESSING = (f"1.2.840.10008.5.1.4.1.1.1.1{end}" for end in ("", ".1"))


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
@pytest.mark.filterwarnings("ignore:.*value length:UserWarning")
@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"NumberOfFrames": "3", "PixelData": bytes(range(64)) * 192}, "multi-frame object with 3 frames"),
        *(
            ({"ViewPosition": view}, "not a frontal film")
            for view in ("LL", "RL", "LATERAL", "lateral", "LLO", "RLO", "LLD", "LAO LAT", "OBLIQUE")
        ),
        *(
            ({"BodyPartExamined": part}, "not the chest")
            for part in ("HIP", "SKULL", "THORACIC SPINE", "CSPINE", "hand")
        ),
        *(({"Modality": modality}, "not a radiograph") for modality in ("CT", "MR", "US", "MG")),
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
        ({"SOPClassUID": DX_FOR_PROCESSING}, "FOR PROCESSING"),
    ],
)
def test_films_that_are_no_frontal_chest_films_are_taken_only_on_demand(
    tmp_path: Path, write_film: WriteFilm, attributes: dict[str, Any], reason: str
) -> None:
    pixels = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    film = write_film(tmp_path / "a.dcm", pixels, **{**CHEST, **attributes})
    with pytest.raises(RejectedFilm, match=f"{reason}.*; pass --any-film to accept it"):
        read_film(film)
    with pytest.raises(RejectedFilm, match="--any-film"):
        read_film(film, FilmRules(allow_burned_in=True))
    got = read_film(film, ANY_FILM)
    np.testing.assert_array_equal(got.image, pixels)
    if "NumberOfFrames" in attributes:
        assert got.warnings == ("only the first of its 3 frames is taken",)


@pytest.mark.parametrize(
    ("sequence", "meaning", "reason"),
    [
        ("ViewCodeSequence", "lateral", "view is LATERAL"),
        ("AnatomicRegionSequence", "Knee", "body part is KNEE"),
    ],
)
def test_codes_stand_in_for_missing_terms(
    tmp_path: Path, write_film: WriteFilm, sequence: str, meaning: str, reason: str
) -> None:
    code = Dataset()
    code.CodeMeaning = meaning
    film = write_film(tmp_path / "a.dcm", np.eye(64, dtype=np.uint8), **{sequence: [code]})
    with pytest.raises(RejectedFilm, match=reason):
        read_film(film)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
@pytest.mark.parametrize("part", ["CHEST", "chest", "Thorax", "LUNG", "PORT CHEST", "TORAX"])
@pytest.mark.parametrize("view", ["PA", "AP", "ap", "BILATERAL PA"])
def test_frontal_chest_films_pass_without_a_warning(
    tmp_path: Path, write_film: WriteFilm, part: str, view: str
) -> None:
    film = write_film(tmp_path / "a.dcm", np.eye(64, dtype=np.uint8), BodyPartExamined=part, ViewPosition=view)
    assert read_film(film).warnings == ()


def test_each_missing_tag_is_a_warning(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.eye(64, dtype=np.uint8)

    def missing(**attributes: Any) -> list[str]:
        found = read_film(write_film(tmp_path / "a.dcm", pixels, **attributes)).warnings
        return [warning.split()[1].rstrip(":") for warning in found]

    assert missing() == ["ViewPosition", "BodyPartExamined"]
    assert missing(ViewPosition="PA", BodyPartExamined="") == ["BodyPartExamined"]
    assert missing(**CHEST, SOPClassUID=DX) == ["PresentationIntentType"]
    assert missing(**CHEST, SOPClassUID=DX, PresentationIntentType="FOR PRESENTATION") == []


def test_text_burned_into_the_pixels_is_taken_only_on_demand(tmp_path: Path, write_film: WriteFilm) -> None:
    film = write_film(tmp_path / "a.dcm", np.eye(64, dtype=np.uint8), **CHEST, BurnedInAnnotation="YES")
    for rules in (FilmRules(), ANY_FILM):
        with pytest.raises(RejectedFilm, match="--allow-burned-in"):
            read_film(film, rules)
    assert read_film(film, FilmRules(allow_burned_in=True)).image.shape == (64, 64)
    unsaid = write_film(tmp_path / "b.dcm", np.eye(64, dtype=np.uint8), **CHEST, BurnedInAnnotation="NO")
    assert read_film(unsaid).warnings == ()


POLARITY = "its PresentationLUTShape does not go with its Photometric Interpretation: the latter counts"


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
    path = write_film(tmp_path / "a.dcm", SMALL_FILM, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    film = read_film(path)
    np.testing.assert_array_equal(film.image, SMALL_FILM if photometric == "MONOCHROME2" else 255 - SMALL_FILM)
    assert film.warnings == warnings


def test_a_presentation_lut_is_a_warning(tmp_path: Path) -> None:
    film = read_film(write_film(tmp_path / "a.dcm", SMALL_FILM, PresentationLUTSequence=[Dataset()]))
    assert film.warnings == ("its Presentation LUT is not applied",)
