"""Writes a mask as a DICOM Segmentation object, which a PACS archives with the film that it refers to."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from pneumo_dist.scoring.arrays import Map
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
# The limit of the DICOM value representation LO.
LONGEST_TEXT = 64

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
    source: Dataset, mask: Map, algorithm: Algorithm, image_score: float | None = None
) -> Segmentation:
    """Return a binary segmentation with one segment, Pneumothorax, on the stored grid of the film.

    The object has the patient and study of its film, so that an archive keeps them together, and a new UID.

    Args:
        source: Data set of the film, with or without its pixels. It is not changed.
        mask: uint8 of 0 and 1, (rows, columns) of the film. An empty mask gives one frame of zeros.
        algorithm: Name and version to record.
        image_score: Score to add to the content description.

    Raises:
        InputError: The film lacks an identifier that a reference needs, has several frames, or has a SOP class that
            highdicom does not know. The message names the film and the tag.
    """
    with warnings.catch_warnings():
        # Films in real archives often violate value representations. The values that are written are checked below.
        warnings.simplefilter("ignore")
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
    return segmentation


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

    Position, orientation and pixel spacing are not copied. A projection has no plane in its frame of reference, and
    highdicom cannot read a spacing without the slice thickness that a projection lacks. The pixel grid is the film's.
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
    for keyword in (*_OR_EMPTY, *_IF_THERE):
        element = _element(source, keyword)
        if element is not None and _is_usable(keyword, element.value):
            film.add(element)
        elif keyword in _OR_EMPTY:
            setattr(film, keyword, "")
    film.Rows, film.Columns = source.Rows, source.Columns
    return film


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
