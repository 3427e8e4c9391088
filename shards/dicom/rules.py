"""Which DICOM images pass as a frontal chest film for presentation, and what is only assumed of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from shards.errors import RejectedFilm

# Defined terms of ViewPosition for lateral, oblique and decubitus films, and how vendors spell them out.
_NOT_FRONTAL = re.compile(r"\b[LR]L[OD]?\b|(?<!BI)LAT|OBL|DECUB")
_CHEST = re.compile(r"CHEST|THORAX|THORACIC|T[OÓ]RAX|LUNG|PULMO")
_SPINE = re.compile(r"SPINE|VERTEBRA")
_NO_RADIOGRAPH = frozenset(
    {"CT", "MR", "US", "NM", "PT", "MG", "XA", "RF", "SM", "ES", "OP", "OCT", "SR", "SEG", "ECG"}
)
# DX, mammography and intra-oral images, each with a class "for processing"; only these have PresentationIntentType.
_WITH_INTENT = "1.2.840.10008.5.1.4.1.1.1."
_FOR_PROCESSING = frozenset({f"{_WITH_INTENT}{kind}.1" for kind in (1, 2, 3)})


# The largest detectors have a quarter of this; what claims more is damaged, or made to fill the memory.
MAX_PIXELS = 12_000 * 12_000


@dataclass(frozen=True)
class FilmRules:
    """Which films are taken: `any_film` also those that are no single frontal chest film for presentation.

    `allow_burned_in` takes films that say that text is burned into their pixels, which may name the patient;
    `any_film` does not.
    """

    any_film: bool = False
    allow_burned_in: bool = False
    max_pixels: int = MAX_PIXELS


def screen(dataset: Dataset, rules: FilmRules) -> tuple[str, ...]:
    """Return warnings about what a data set leaves open.

    Raises RejectedFilm, with the reason and the option that takes the film, for what the rules refuse.
    """
    if text(dataset, "BurnedInAnnotation").upper() == "YES" and not rules.allow_burned_in:
        raise RejectedFilm(
            "BurnedInAnnotation is YES: its pixels may name the patient; pass --allow-burned-in to take it"
        )
    if not rules.any_film:
        for objection in _objections(dataset):
            raise RejectedFilm(f"{objection}; pass --any-film to take it")
    return tuple(_assumptions(dataset))


def frame_count(dataset: Dataset) -> int:
    """Return the number of frames, 1 where it is not given. Raises ValueError or TypeError for a damaged value."""
    return int(dataset.get("NumberOfFrames") or 1)


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element's value as stripped text, empty where there is none."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _objections(dataset: Dataset) -> Iterator[str]:
    if (frames := frame_count(dataset)) > 1:
        yield f"multi-frame object with {frames} frames, of which only the first could be used"
    if (modality := text(dataset, "Modality").upper()) in _NO_RADIOGRAPH:
        yield f"its modality is {modality}, not a radiograph"
    view = _view(dataset)
    if _NOT_FRONTAL.search(view):
        yield f"its view is {view}: lateral, oblique or decubitus, not a frontal film"
    part = _body_part(dataset)
    if part and (not _CHEST.search(part) or _SPINE.search(part)):
        yield f"its body part is {part}, not the chest"
    if _is_for_processing(dataset):
        yield "its pixels are FOR PROCESSING, not for display: send the FOR PRESENTATION image"


def _assumptions(dataset: Dataset) -> Iterator[str]:
    if (frames := frame_count(dataset)) > 1:
        yield f"only the first of its {frames} frames is taken"
    if not _view(dataset):
        yield "no ViewPosition: taken as a frontal film"
    if not _body_part(dataset):
        yield "no BodyPartExamined: taken as a chest film"
    if text(dataset, "SOPClassUID").startswith(_WITH_INTENT) and not _intent(dataset):
        yield "no PresentationIntentType: taken as for presentation"


def _is_for_processing(dataset: Dataset) -> bool:
    return "PROCESSING" in _intent(dataset) or text(dataset, "SOPClassUID") in _FOR_PROCESSING


def _intent(dataset: Dataset) -> str:
    return text(dataset, "PresentationIntentType").upper()


def _view(dataset: Dataset) -> str:
    return text(dataset, "ViewPosition").upper() or _code_meaning(dataset, "ViewCodeSequence")


def _body_part(dataset: Dataset) -> str:
    return text(dataset, "BodyPartExamined").upper() or _code_meaning(dataset, "AnatomicRegionSequence")


def _code_meaning(dataset: Dataset, keyword: str) -> str:
    items = dataset.get(keyword)
    return text(items[0], "CodeMeaning").upper() if items else ""
