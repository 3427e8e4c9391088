"""Segmentation objects, read back by highdicom and by pydicom."""

import contextlib
import copy
import io
import os
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from film_files import PATIENT_ID, PATIENT_NAME, film_dataset, noise
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import DigitalXRayImageStorageForPresentation, SegmentationStorage, generate_uid

from pneumo_dist.output.dicom_seg import LONGEST_TEXT, Algorithm, length_warnings, segmentation_object
from shards.dicom.film import read_film
from shards.errors import InputError, RejectedFilm
from shards.phantom.dataset import synthesize

Mask = npt.NDArray[np.uint8]

ALGORITHM = Algorithm("seunet ensemble", "1.2.3+4f")
DX = {
    "SOPClassUID": DigitalXRayImageStorageForPresentation,
    "Modality": "DX",
    "PresentationIntentType": "FOR PRESENTATION",
}
MASKS = ["empty", "full", "random", "first pixel", "last pixel"]


def make_mask(kind: str, rows: int, columns: int) -> Mask:
    mask = np.zeros((rows, columns), np.uint8)
    if kind == "full":
        mask[:] = 1
    elif kind == "random":
        mask[:] = noise(rows, columns, seed=7) > 127
    elif kind == "first pixel":
        mask[0, 0] = 1
    elif kind == "last pixel":
        mask[-1, -1] = 1
    return mask


def written(source: Dataset, mask: Mask) -> bytes:
    stream = io.BytesIO()
    segmentation_object(source, mask, ALGORITHM, 0.25).save_as(stream)
    return stream.getvalue()


def read_back(content: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def check_pixels(content: bytes, source: Dataset, mask: Mask) -> None:
    """Assert that both libraries read exactly this mask as the only frame of the source instance."""
    plain = read_back(content)
    assert plain.SOPClassUID == plain.file_meta.MediaStorageSOPClassUID == SegmentationStorage
    assert (plain.NumberOfFrames, plain.Rows, plain.Columns) == (1, *mask.shape)
    np.testing.assert_array_equal(plain.pixel_array, mask)
    ours = highdicom.seg.segread(io.BytesIO(content))
    found = ours.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
    np.testing.assert_array_equal(found[0, :, :, 0], mask)
    assert ours.segmentation_type is highdicom.seg.SegmentationTypeValues.BINARY


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", [(16, 16), (9, 13), (31, 8), (7, 64)])
@pytest.mark.parametrize("more", [{}, {"FrameOfReferenceUID": generate_uid()}, DX], ids=["CR", "CR in a frame", "DX"])
def test_the_mask_is_read_back_exactly(kind: str, shape: tuple[int, int], more: dict[str, Any]) -> None:
    source, mask = film_dataset(noise(*shape), **more), make_mask(kind, *shape)
    check_pixels(written(source, mask), source, mask)


def test_the_segment_is_a_pneumothorax_by_a_named_algorithm() -> None:
    made = read_back(written(film_dataset(noise(8, 8)), make_mask("full", 8, 8)))
    (segment,) = made.SegmentSequence
    (kind,), (category,) = segment.SegmentedPropertyTypeCodeSequence, segment.SegmentedPropertyCategoryCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("36118008", "SCT", "Pneumothorax")
    assert category.CodeValue == codes.cid7150.MorphologicallyAbnormalStructure.value
    assert (segment.SegmentNumber, segment.SegmentAlgorithmType) == (1, "AUTOMATIC")
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == codes.cid7162.ArtificialIntelligence.value
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (ALGORITHM.name, ALGORITHM.version)
    assert segment.SegmentAlgorithmName == made.ManufacturerModelName == ALGORITHM.name
    assert made.SoftwareVersions == made.DeviceSerialNumber == ALGORITHM.version
    assert (made.ContentLabel, made.ContentDescription) == ("PNEUMOTHORAX", "Image score 0.250")
    assert (made.ContentQualification, made.Modality) == ("RESEARCH", "SEG")


def test_the_film_is_referenced_and_has_its_own_study() -> None:
    source = film_dataset(noise(8, 8))
    made = read_back(written(source, make_mask("random", 8, 8)))
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID != made.SeriesInstanceUID
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID != made.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == source.SOPClassUID
    (frame,) = made.PerFrameFunctionalGroupsSequence
    derived = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert derived.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert made.StudyInstanceUID == source.StudyInstanceUID


@pytest.mark.parametrize("uid", [None, "1.2.826.0.1.3680043.8.498.7"])
def test_a_frame_of_reference_is_that_of_the_film_or_none(uid: str | None) -> None:
    source = film_dataset(noise(8, 8), **({"FrameOfReferenceUID": uid} if uid else {}))
    assert read_back(written(source, make_mask("full", 8, 8))).get("FrameOfReferenceUID") == uid


def test_an_empty_frame_of_reference_is_none() -> None:
    source = film_dataset(noise(8, 8), FrameOfReferenceUID="")
    assert "FrameOfReferenceUID" not in read_back(written(source, make_mask("full", 8, 8)))


def test_a_position_in_the_frame_of_reference_needs_nothing_else() -> None:
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    source = film_dataset(noise(8, 9), FrameOfReferenceUID=generate_uid(), PixelSpacing=[0.2, 0.3], **place)
    mask = make_mask("random", 8, 9)
    content = written(source, mask)
    check_pixels(content, source, mask)
    assert read_back(content).FrameOfReferenceUID == source.FrameOfReferenceUID


@pytest.mark.parametrize("spacing", [[0.2, 0.3], [0, 0], [0.2], ""])
def test_a_film_of_any_spacing_has_a_readable_segmentation(spacing: Any) -> None:
    source, mask = film_dataset(noise(8, 9), PixelSpacing=spacing), make_mask("random", 8, 9)
    check_pixels(written(source, mask), source, mask)


@pytest.mark.parametrize(("value", "kept"), [(["L", "F"], ["L", "F"]), ("", None), (None, None)])
def test_the_orientation_is_copied_or_empty(value: list[str] | None, kept: list[str] | None) -> None:
    source = film_dataset(noise(8, 8))
    if value is not None:
        source.PatientOrientation = value
    assert (read_back(written(source, make_mask("full", 8, 8)))["PatientOrientation"].value or None) == kept


def test_the_object_has_the_patient_and_study_of_its_film() -> None:
    source = film_dataset(noise(8, 8), IssuerOfPatientID="HOSPITAL", PatientIdentityRemoved="NO")
    made = read_back(written(source, make_mask("full", 8, 8)))
    assert (made.PatientID, made.PatientName) == (PATIENT_ID, PATIENT_NAME)
    same = ["PatientBirthDate", "PatientSex", "IssuerOfPatientID", "PatientIdentityRemoved"]
    same += ["StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"]
    assert {name: made[name].value for name in same} == {name: source[name].value for name in same}


@pytest.mark.parametrize("charset", ["ISO 2022 IR 87", "ISO_IR 192", "ISO_IR 100", "unheard of", None])
def test_a_name_in_any_script_survives(charset: str | None) -> None:
    name = "Müller^Jürgen" if charset == "ISO_IR 100" else "Yamada^Tarou=山田^太郎"
    if charset in ("unheard of", None):
        name = "Plain^Name"
    stream = io.BytesIO()
    source = film_dataset(noise(8, 8), PatientName=name)
    if charset is not None:
        source.SpecificCharacterSet = ["", charset] if charset.startswith("ISO 2022") else charset
    pydicom.dcmwrite(stream, source, enforce_file_format=True)
    made = read_back(written(read_back(stream.getvalue()), make_mask("full", 8, 8)))
    assert made.PatientName == name
    assert made.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize(
    "tag",
    [
        *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
        *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_optional_elements_may_be_missing(tag: str, value: str | None) -> None:
    source, mask = film_dataset(noise(8, 8), **{tag: value}), make_mask("random", 8, 8)
    content = written(source, mask)
    check_pixels(content, source, mask)
    assert not read_back(content)[tag].value


@pytest.mark.parametrize(
    ("tag", "value"), [("PatientSex", "U"), ("StudyDate", "unknown"), ("StudyTime", "noon"), ("PatientBirthDate", "?")]
)
def test_values_that_break_the_standard_are_left_empty(tag: str, value: str) -> None:
    source = film_dataset(noise(8, 8))
    with pytest.warns(UserWarning) if tag != "PatientSex" else contextlib.nullcontext():
        setattr(source, tag, value)
    assert not read_back(written(source, make_mask("full", 8, 8)))[tag].value


@pytest.mark.parametrize("spacing", [None, (0.2, 0.3)])
@pytest.mark.parametrize("frame", [{}, {"FrameOfReferenceUID": "1.2.3"}])
@pytest.mark.parametrize("plane", [None, [1, 0, 0, 0, 0, -1], [0.6, 0.8, 0, -0.8, 0.6, 0]])
def test_spacing_and_orientation_are_written_where_they_are_known(
    spacing: tuple[float, float] | None, frame: dict[str, str], plane: list[float] | None
) -> None:
    more = frame if plane is None else {**frame, "ImageOrientationPatient": plane}
    source, mask = film_dataset(noise(8, 9), **more), make_mask("random", 8, 9)
    stream = io.BytesIO()
    segmentation_object(source, mask, ALGORITHM, spacing=spacing).save_as(stream)
    check_pixels(stream.getvalue(), source, mask)
    (shared,) = read_back(stream.getvalue()).SharedFunctionalGroupsSequence
    assert ("PixelMeasuresSequence" in shared) == (spacing is not None)
    if spacing is not None:
        assert tuple(shared.PixelMeasuresSequence[0].PixelSpacing) == spacing
    assert ("PlaneOrientationSequence" in shared) == (plane is not None)
    if plane is not None:
        assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == plane


@pytest.mark.parametrize(
    "plane", ["", [1, 0, 0], [1, 0, 0, 1, 0, 0], [0] * 6, [2, 0, 0, 0, 2, 0], [1, 0, 0, 0, float("nan"), 0]]
)
def test_an_orientation_that_is_none_is_left_out(plane: Any) -> None:
    source = film_dataset(noise(8, 8))
    with contextlib.suppress(OverflowError):
        source.ImageOrientationPatient = plane
    (shared,) = read_back(written(source, make_mask("full", 8, 8))).SharedFunctionalGroupsSequence
    assert "PlaneOrientationSequence" not in shared


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("tag", "value", "cut"),
    [
        ("AccessionNumber", "A" * 16, None),
        ("AccessionNumber", "A" * 17, "A" * 16),
        ("AccessionNumber", "A" * 15 + " B", "A" * 15),
        ("StudyID", "Ä" * 16, None),
        ("StudyID", "Ä" * 30, "Ä" * 16),
        ("PatientID", "1" * 64, None),
        ("PatientID", "1" * 65, "1" * 64),
        ("StudyDescription", "d" * 70, "d" * 64),
        ("PatientName", "N" * 64 + "=" + "M" * 64, None),
        ("PatientName", "N" * 60 + "^First=" + "M" * 66, "N" * 60 + "^Fir=" + "M" * 64),
        ("DeidentificationMethod", ["x" * 65, "y"], ["x" * 64, "y"]),
    ],
)
def test_texts_are_cut_to_the_length_of_the_standard_with_a_warning(tag: str, value: Any, cut: Any) -> None:
    source, mask = film_dataset(noise(8, 8), SpecificCharacterSet="ISO_IR 192"), make_mask("full", 8, 8)
    setattr(source, tag, value)
    before = copy.deepcopy(source)
    lines = length_warnings(source)
    made = read_back(written(source, mask))
    assert made[tag].value == (value if cut is None else cut)
    assert len(lines) == (cut is not None) and all(f"its {tag} is longer than the" in line for line in lines)
    assert not any(str(value)[:5] in line for line in lines)
    assert source == before


@pytest.mark.parametrize("tag", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_film_that_cannot_be_referenced_is_refused_by_name(tag: str, tmp_path: Path) -> None:
    path = tmp_path / "nameless.dcm"
    pydicom.dcmwrite(path, film_dataset(noise(8, 8), **{tag: None}), enforce_file_format=True)
    with pytest.raises(InputError, match=rf"nameless\.dcm: has no {tag},"):
        segmentation_object(pydicom.dcmread(path), make_mask("full", 8, 8), ALGORITHM)


def test_frames_and_unknown_classes_are_refused() -> None:
    with pytest.raises(InputError, match="several frames"):
        segmentation_object(film_dataset(noise(8, 8), NumberOfFrames=2), make_mask("full", 8, 8), ALGORITHM)
    private = film_dataset(noise(8, 8), SOPClassUID="1.2.3.4")
    with pytest.raises(InputError, match=r"cannot refer to this film .*1\.2\.3\.4"):
        segmentation_object(private, make_mask("full", 8, 8), ALGORITHM)


def test_the_source_is_not_changed_and_another_shape_is_an_assertion_error() -> None:
    source = film_dataset(noise(8, 8), PatientSex="U", PatientID=None)
    before = copy.deepcopy(source)
    segmentation_object(source, make_mask("full", 8, 8), ALGORITHM)
    assert source == before
    with pytest.raises(AssertionError):
        segmentation_object(source, make_mask("full", 8, 9), ALGORITHM)


@pytest.mark.parametrize("text", ["", "x" * (LONGEST_TEXT + 1), "a\\b"])
def test_an_algorithm_has_a_name_and_a_version_that_dicom_can_hold(text: str) -> None:
    with pytest.raises(InputError, match="the algorithm's name"):
        Algorithm(text, "1")
    with pytest.raises(InputError, match="the algorithm's version"):
        Algorithm("a", text)


def test_phantom_films_have_segmentations(tmp_path: Path) -> None:
    made = synthesize(tmp_path / "synth", images=2, size=64, positive_rate=0.5, seed=5)
    paths = sorted(made.dicom_dir.rglob("*.dcm"))
    assert len(paths) == 2
    for path in paths:
        source, mask = pydicom.dcmread(path), make_mask("random", 64, 64)
        content = written(source, mask)
        check_pixels(content, source, mask)
        assert read_back(content).PatientID == source.PatientID
        assert read_back(content).LossyImageCompression == "01"


def test_real_films_have_segmentations() -> None:
    default = Path(__file__).parents[3] / "../shared/data"
    folder = Path(os.environ.get("PNEUMO_REAL_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip("no real films here: point PNEUMO_REAL_DATA at their folder")
    written_for, refused = [], []
    for path in sorted(folder.rglob("*.dcm")):
        source = pydicom.dcmread(path, force=True)
        try:
            shape = read_film(path).image.shape
            mask = make_mask("random", *shape)
            content = written(source, mask)
        except RejectedFilm:
            continue
        except InputError as error:
            refused.append(str(error))
            continue
        check_pixels(content, source, mask)
        assert read_back(content).get("FrameOfReferenceUID") == (source.get("FrameOfReferenceUID") or None)
        written_for.append(path)
    assert sum("siim_sample" in path.parts for path in written_for) == 10
    assert all("has no" in reason for reason in refused), refused
