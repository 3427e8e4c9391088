"""pydicom's warnings become warnings of the film that can be counted and contain nothing of the patient."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_streams import encode_jpeg, recode
from film_files import film_dataset, write_film
from pydicom import uid
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info

from shards.dicom.complaints import complaints
from shards.dicom.film import read_film
from shards.phantom.dataset import render_film

FILM = render_film(np.random.default_rng(5), 96, True).image


@pytest.mark.parametrize("frames", ["0", ""])
def test_a_number_of_frames_that_is_none_is_a_warning(tmp_path: Path, frames: str) -> None:
    film = read_film(write_film(tmp_path / "a.dcm", FILM, NumberOfFrames=frames))
    assert film.warnings == ("its Number of Frames is no number: taken as 1",)


def test_a_file_in_another_encoding_than_its_transfer_syntax_is_a_warning(tmp_path: Path) -> None:
    dataset, content = film_dataset(FILM), DicomBytesIO()
    content.is_implicit_VR, content.is_little_endian = True, True
    bare = pydicom.Dataset()
    bare.update({element.tag: element for element in dataset})
    write_dataset(content, bare)
    head = DicomBytesIO()
    head.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(head, dataset.file_meta)
    (tmp_path / "a.dcm").write_bytes(head.getvalue() + content.getvalue())
    film = read_film(tmp_path / "a.dcm")
    np.testing.assert_array_equal(film.image, FILM)
    assert film.warnings == ("its transfer syntax names another VR encoding than the file has",)


@pytest.mark.parametrize(
    ("photometric", "warning"),
    [("RGB", ("its Photometric Interpretation is not YBR, its JPEG stream is",)), ("YBR_FULL_422", ())],
)
def test_colours_that_the_stream_contradicts_are_a_warning(
    tmp_path: Path, photometric: str, warning: tuple[str, ...]
) -> None:
    colour = np.stack([FILM, FILM, np.roll(FILM, 9, axis=0)], axis=2)
    tags: dict[str, Any] = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    path = recode(write_film(tmp_path / "a.dcm", FILM, **tags), uid.JPEGBaseline8Bit, [encode_jpeg(colour)])
    assert read_film(path).warnings == warning


@pytest.mark.filterwarnings("ignore")
def test_complaints_of_values_that_say_nothing_of_pixels_are_left_out(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.dcm", FILM)
    content = pydicom.dcmread(path)
    content.PatientName, content.PatientBirthDate, content.StudyTime = "Doe^Jane=" * 9, "yesterday", "soon"
    content.SpecificCharacterSet, content.StudyInstanceUID, content.ViewPosition = "nonsense", "0.00.x", "pa"
    content.save_as(path)
    assert read_film(path).warnings == ()


def caught(*texts: str, where: str = "/site/pydicom/pixels/decoders/base.py") -> list[warnings.WarningMessage]:
    return [warnings.WarningMessage(text, UserWarning, where, 1) for text in texts]


def test_what_is_not_known_is_passed_on_without_numbers_values_and_paths() -> None:
    texts = complaints(
        caught(
            "Frame 17 of 'Doe^Jane' is 12.5 mm \"wide\" in file /home/doe/jane.dcm", "Frame 4 of 'Roe' is 1.25 mm \"b\""
        )
    )
    assert texts == ("pydicom warns: Frame N of … is N.N mm …",)


def test_only_pydicoms_readers_are_heard() -> None:
    for where in ("/site/pydicom/valuerep.py", "/site/pydicom/charset.py", "/site/numpy/pixels/core.py"):
        assert complaints(caught("anything", where=where)) == ()
    assert complaints(caught("anything", where="/site/pydicom/encaps.py")) == ("pydicom warns: anything",)
