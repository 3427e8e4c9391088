"""Writes a mask as a DICOM Segmentation object, which a PACS archives with the film that it refers to."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, PixelMeasuresSequence, PlaneOrientationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from pneumo_dist.scoring.arrays import Map
from shards.caught import caught_warnings
from shards.dicom.rules import frame_count
from shards.errors import InputError

PNEUMOTHORAX = Code("36118008", "SCT", "Pneumothorax")
# The category of CID 7150 for abnormal findings in an organ.
CATEGORY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
FAMILY = Code("123110", "DCM", "Artificial Intelligence")
MANUFACTURER = "pneumo_dist"
SERIES_DESCRIPTION = "Pneumothorax segmentation, research use only"
CONTENT_LABEL = "PNEUMOTHORAX"
# Scanners and viewers number series from 1, so a high number avoids theirs. The UID identifies the series.
SERIES_NUMBER = 9100
# Characters that a value may have by its value representation (PS3.5 6.2), of a name in each of its spellings.
LONGEST = {"SH": 16, "LO": 64, "PN": 64}
LONGEST_TEXT = LONGEST["LO"]
# A projection has no slices. Readers require a thickness beside a pixel spacing: highdicom reads no object without it.
NO_THICKNESS_MM = 1.0
# Deviation from unit length and from a right angle that writers round to.
_TOLERANCE = 1e-3

_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_OR_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    "PatientOrientation",
)
_IF_THERE = (
    *("IssuerOfPatientID", "StudyDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_SEXES = ("M", "F", "O")


@dataclass(frozen=True)
class Algorithm:
    """Name and version of the algorithm, as a PACS shows them: 1 to 64 characters each, without a backslash."""

    name: str
    version: str

    def __post_init__(self) -> None:
        for field, text in vars(self).items():
            if not 1 <= len(text) <= LONGEST_TEXT or "\\" in text:
                raise InputError(
                    f"the algorithm's {field} is {text!r}: give 1 to {LONGEST_TEXT} characters without a backslash"
                )


def segmentation_object(
    source: Dataset,
    mask: Map,
    algorithm: Algorithm,
    image_score: float | None = None,
    spacing: tuple[float, float] | None = None,
) -> Segmentation:
    """Return a binary segmentation with one segment, Pneumothorax, on the stored grid of the film.

    The object has the patient and study of its film, so that an archive keeps them together, and a new UID. Texts that
    are longer than the standard allows are cut, as `length_warnings` says.

    Args:
        source: Data set of the film, with or without its pixels. It is not changed.
        mask: uint8 of 0 and 1, (rows, columns) of the film. An empty mask gives one frame of zeros.
        algorithm: Name and version to record.
        image_score: Score to add to the content description.
        spacing: Distances of rows and of columns in mm, if they are known. `ImageOrientationPatient` is the film's own.

    Raises:
        InputError: The film lacks an identifier that a reference needs, has several frames, or has a SOP class that
            highdicom does not know. The message names the film and the tag.
    """
    with caught_warnings():
        # Films in real archives often violate value representations. The values that are written are checked below.
        film = _reference(source)
        assert mask.dtype == np.uint8 and mask.shape == (film.Rows, film.Columns), (mask.dtype, mask.shape)
        try:
            segmentation = Segmentation(
                source_images=[film],
                pixel_array=mask,
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=[_segment(algorithm)],
                series_instance_uid=generate_uid(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=algorithm.name,
                software_versions=algorithm.version,
                # Required, but software has no serial number: its version distinguishes two installations.
                device_serial_number=algorithm.version,
                content_label=CONTENT_LABEL,
                content_description=None if image_score is None else f"Image score {image_score:.3f}",
                content_qualification="RESEARCH",
                series_description=SERIES_DESCRIPTION,
                # UTF-8, for names in any script. Texts are already decoded, also from films with a wrong character set.
                specific_character_set="ISO_IR 192",
                omit_empty_frames=False,
            )
        except (KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{_name(source)}: a segmentation object cannot refer to this film ({reason})") from None
        # Required for an image without a plane in the patient, but not copied by highdicom.
        segmentation.add(film["PatientOrientation"])
        shared = segmentation.SharedFunctionalGroupsSequence[0]
        if spacing is not None:
            shared.PixelMeasuresSequence = PixelMeasuresSequence(spacing, NO_THICKNESS_MM)
        orientation = _plane_orientation(source)
        if orientation is not None:
            shared.PlaneOrientationSequence = PlaneOrientationSequence("PATIENT", orientation)
    return segmentation


def length_warnings(source: Dataset) -> tuple[str, ...]:
    """Return a line for each element of a film that is cut in its segmentation object. Values are not repeated."""
    with caught_warnings():
        return tuple(
            f"its {element.keyword} is longer than the {LONGEST[element.VR]} characters of the standard: cut in the "
            "segmentation object"
            for element in _copied(source)
            if _shortened(element) is not element
        )


def _segment(algorithm: Algorithm) -> SegmentDescription:
    return SegmentDescription(
        segment_number=1,
        segment_label=PNEUMOTHORAX.meaning,
        segmented_property_category=CATEGORY,
        segmented_property_type=PNEUMOTHORAX,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm.name, family=FAMILY, version=algorithm.version, source=MANUFACTURER
        ),
    )


def _reference(source: Dataset) -> Dataset:
    """Return the elements that a segmentation copies from its film, including all that highdicom requires.

    Position, orientation and pixel spacing are left out, or highdicom would require all of them together.
    """
    if frame_count(source) > 1:
        raise InputError(f"{_name(source)}: has several frames; a segmentation object is written for single films only")
    film = Dataset()
    for keyword in _REQUIRED:
        element = _element(source, keyword)
        if element is None:
            raise InputError(
                f"{_name(source)}: has no {keyword}, which a segmentation object needs to refer to it; export it again"
            )
        film.add(element)
    for keyword in _OR_EMPTY:
        setattr(film, keyword, "")
    for element in _copied(source):
        film.add(_shortened(element))
    film.Rows, film.Columns = source.Rows, source.Columns
    return film


def _copied(source: Dataset) -> Iterator[DataElement]:
    """Yield the elements that a segmentation copies besides the identifiers that a reference needs."""
    for keyword in (*_OR_EMPTY, *_IF_THERE):
        element = _element(source, keyword)
        if element is not None and _is_usable(keyword, element.value):
            yield element


def _shortened(element: DataElement) -> DataElement:
    """Return an element whose texts have the length of the standard: the same one if none is longer."""
    longest = LONGEST.get(element.VR)
    if longest is None:
        return element
    values = [str(value) for value in (element.value if element.VM > 1 else [element.value])]
    separator = "=" if element.VR == "PN" else None  # the spellings of a name
    cut = [_cut(value, longest, separator) for value in values]
    return element if cut == values else DataElement(element.tag, element.VR, cut if len(cut) > 1 else cut[0])


def _cut(text: str, longest: int, separator: str | None) -> str:
    if separator is None:
        return text if len(text) <= longest else text[:longest].rstrip()
    return separator.join(_cut(part, longest, None) for part in text.split(separator))


def _plane_orientation(source: Dataset) -> list[float] | None:
    """Return a film's ImageOrientationPatient, None if it has none or its directions are not perpendicular units."""
    element = _element(source, "ImageOrientationPatient")
    try:
        values = [] if element is None else [float(value) for value in element.value]
    except (TypeError, ValueError):
        return None
    if len(values) != 6 or not all(map(math.isfinite, values)):
        return None
    row, column = np.array(values[:3]), np.array(values[3:])
    deviations = (row @ row - 1, column @ column - 1, row @ column)
    return values if max(map(abs, deviations)) <= _TOLERANCE else None


def _element(source: Dataset, keyword: str) -> DataElement | None:
    """Return an element; None if it is missing or empty, or if its value cannot be read."""
    try:
        element: DataElement = source[keyword]
        return None if element.is_empty else element
    except (KeyError, ValueError, TypeError):
        return None


def _is_usable(keyword: str, value: Any) -> bool:
    """Return whether highdicom accepts a value. Other values, like a sex of `U` or a date of `unknown`, are dropped."""
    if keyword == "PatientSex":
        return value in _SEXES
    if keyword == "LossyImageCompression":
        return value in ("00", "01")
    if keyword.endswith(("Date", "Time")):
        try:
            return (DA if keyword.endswith("Date") else TM)(value) is not None
        except (ValueError, TypeError):
            return False
    return True


def _name(source: Dataset) -> str:
    return str(getattr(source, "filename", None) or source.get("SOPInstanceUID") or "the film")
