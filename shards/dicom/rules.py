"""Decides which DICOM images are accepted as frontal chest films for presentation, and warns of assumptions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shards.dicom.words import Meaning, known_words, modality_meaning, part_meaning, view_meaning
from shards.errors import RejectedFilm

if TYPE_CHECKING:  # command lines import this module, and pydicom takes 0.1 s to import
    from pydicom.dataset import Dataset

# DX, mammography and intra-oral images, each with a class "for processing". Only these have PresentationIntentType.
_WITH_INTENT = "1.2.840.10008.5.1.4.1.1.1."
_FOR_PROCESSING = frozenset({f"{_WITH_INTENT}{kind}.1" for kind in (1, 2, 3)})
_SMALLEST_SIDE = 64
# 12,000 x 12,000, more than any detector or scanner of films.
MAX_PIXELS = 144_000_000
# Photometric interpretation of each PresentationLUTShape (PS3.3 C.8.11.3.1.2). Others have no known polarity.
_POLARITY = {"IDENTITY": "MONOCHROME2", "INVERSE": "MONOCHROME1"}


@dataclass(frozen=True)
class FilmRules:
    """Rules for accepting films. `any_film` accepts more than single frontal chest films for presentation.

    `allow_burned_in` accepts films that declare text burned into their pixels, which may identify the patient;
    `any_film` does not. A film of more than `max_pixels` is refused before it is decoded.
    """

    any_film: bool = False
    allow_burned_in: bool = False
    max_pixels: int = MAX_PIXELS


def screen(dataset: "Dataset", rules: FilmRules) -> tuple[str, ...]:
    """Return warnings about what a data set leaves open.

    Raises RejectedFilm for a film that the rules refuse, with the reason and the option that accepts it.
    """
    if text(dataset, "BurnedInAnnotation").upper() == "YES" and not rules.allow_burned_in:
        raise RejectedFilm(
            "BurnedInAnnotation is YES: its pixels may identify the patient; pass --allow-burned-in to accept it"
        )
    if not rules.any_film:
        for objection in _objections(dataset):
            raise RejectedFilm(f"{objection}; pass --any-film to accept it")
    return tuple(_assumptions(dataset))


def check_side(rows: int, columns: int, rules: FilmRules) -> None:
    """Raise RejectedFilm for an icon or a test image, unless the rules take any film."""
    if min(rows, columns) < _SMALLEST_SIDE and not rules.any_film:
        raise RejectedFilm(
            f"it is {columns}x{rows} pixels, less than {_SMALLEST_SIDE} a side: too small for a chest film; "
            "pass --any-film to accept it"
        )


def frame_count(dataset: "Dataset") -> int:
    """Return the number of frames, 1 if it is missing. Raises ValueError or TypeError for a damaged value."""
    return int(dataset.get("NumberOfFrames") or 1)


def text(dataset: "Dataset", keyword: str) -> str:
    """Return the value of an element as stripped text, empty if it is missing."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _objections(dataset: "Dataset") -> Iterator[str]:
    if (frames := frame_count(dataset)) > 1:
        yield f"multi-frame object with {frames} frames, of which only the first could be used"
    if modality_meaning(modality := text(dataset, "Modality").upper()) is Meaning.NO:
        yield f"its modality is {modality}, not a radiograph"
    view, part = _view(dataset), _body_part(dataset)
    if view and view_meaning(view) is Meaning.NO:
        yield f"its view is {known_words(view)}: lateral, oblique or decubitus, not a frontal film"
    if part and part_meaning(part) is Meaning.NO:
        yield f"its body part is {known_words(part)}, not the chest"
    if _is_for_processing(dataset):
        yield "its pixels are FOR PROCESSING, not for display: send the FOR PRESENTATION image"


def _assumptions(dataset: "Dataset") -> Iterator[str]:
    if (frames := frame_count(dataset)) > 1:
        yield f"only the first of its {frames} frames is taken"
    if modality_meaning(text(dataset, "Modality")) is Meaning.UNKNOWN:
        yield "an unknown Modality: taken as a radiograph"
    if not (view := _view(dataset)):
        yield "no ViewPosition: taken as a frontal film"
    elif view_meaning(view) is Meaning.UNKNOWN:
        yield "an unknown ViewPosition: taken as a frontal film"
    if not (part := _body_part(dataset)):
        yield "no BodyPartExamined: taken as a chest film"
    elif part_meaning(part) is Meaning.UNKNOWN:
        yield "an unknown BodyPartExamined: taken as a chest film"
    if text(dataset, "SOPClassUID").startswith(_WITH_INTENT) and not _intent(dataset):
        yield "no PresentationIntentType: taken as for presentation"
    shape, photometric = text(dataset, "PresentationLUTShape").upper(), text(dataset, "PhotometricInterpretation")
    if shape and photometric in _POLARITY.values() and _POLARITY.get(shape) != photometric:
        yield "its PresentationLUTShape does not go with its Photometric Interpretation: the latter counts"
    if dataset.get("PresentationLUTSequence"):
        yield "its Presentation LUT is not applied"


def _is_for_processing(dataset: "Dataset") -> bool:
    return "PROCESSING" in _intent(dataset) or text(dataset, "SOPClassUID") in _FOR_PROCESSING


def _intent(dataset: "Dataset") -> str:
    return text(dataset, "PresentationIntentType").upper()


def _view(dataset: "Dataset") -> str:
    return text(dataset, "ViewPosition").upper() or _code_meaning(dataset, "ViewCodeSequence")


def _body_part(dataset: "Dataset") -> str:
    return text(dataset, "BodyPartExamined").upper() or _code_meaning(dataset, "AnatomicRegionSequence")


def _code_meaning(dataset: "Dataset", keyword: str) -> str:
    items = dataset.get(keyword)
    return text(items[0], "CodeMeaning").upper() if items else ""
