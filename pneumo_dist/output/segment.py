"""Turns the prediction of a new film into a mask, an overlay, a DICOM Segmentation object and a line of findings."""

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom

from pneumo_dist.output.dicom_seg import Algorithm, segmentation_object
from pneumo_dist.predict.new_films import film_name
from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.masks import Rule, apply_rule, image_score, label_map
from shards.dataset.table import LabelGrid
from shards.dicom.film import FilmInfo, FilmRules, read_film
from shards.drawing import encode_image, outline_pixels
from shards.files import atomic_open, atomic_write

# A chest film shows 25 to 50 cm. A width outside this range means that the spacing belongs to another grid.
NARROWEST_MM, WIDEST_MM = 250.0, 500.0
NOTE = "For research use only, not for diagnosis"
FOUND, EMPTY = "pneumothorax: outlined in red", "no pneumothorax found"
RED = (255, 0, 0)
FILL = 0.2
# Width of the longest line in the margin, as a share of the film's width.
TEXT_SHARE = 0.4

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DEFAULT_RULES = FilmRules()


@dataclass(frozen=True)
class FilmPrediction:
    """The stored prediction of a film: its map, uint8 (size, size), its own label grid, and its class probability."""

    p8: Map
    grid: LabelGrid
    class_probability: float | None = None


def segment_film(
    path: Path,
    prediction: FilmPrediction,
    rule: Rule,
    algorithm: Algorithm,
    out: Path,
    film_rules: FilmRules = _DEFAULT_RULES,
) -> dict[str, Any]:
    """Write OUT/<name>.mask.png, .overlay.png and .seg.dcm for one film, and return its findings as JSON types.

    The findings and the pictures name the film and its SOP instance UID, but never the patient. The segmentation object
    belongs to the patient's study and names the patient.

    Args:
        path: The DICOM file.
        prediction: Its prediction.
        rule: The rule for masks.
        algorithm: Name and version for the segmentation object.
        out: Existing folder to write to.
        film_rules: The rules that the film was accepted with.

    Raises:
        RejectedFilm: The rules refuse the film. Nothing is written.
        InputError: A segmentation object cannot refer to the film. Nothing is written.
    """
    film, source, grid = read_film(path, film_rules), _read_header(path), prediction.grid
    assert film.image.shape == (grid.height, grid.width), (film.image.shape, grid)
    probabilities = label_map(prediction.p8, grid)
    mask = apply_rule(probabilities, rule, prediction.class_probability)
    score = image_score(probabilities, rule.triplet.area)
    segmentation = segmentation_object(source, mask, algorithm, score)
    name = film_name(path)
    files = {"mask": f"{name}.mask.png", "overlay": f"{name}.overlay.png", "segmentation": f"{name}.seg.dcm"}
    atomic_write(out / files["mask"], encode_image(mask * np.uint8(255)))
    atomic_write(out / files["overlay"], encode_image(draw_film(film.image, mask, film.warnings)))
    with atomic_open(out / files["segmentation"]) as stream:
        segmentation.save_as(stream)
    return {
        "film": path.name,
        "sop_instance_uid": str(source.SOPInstanceUID),
        "called": bool(mask.any()),
        "image_score": score,
        "class_probability": prediction.class_probability,
        "warnings": list(film.warnings),
        **measured_area(mask, film.info),
        "files": files,
        "for_research_use_only": True,
    }


def measured_area(mask: Map, info: FilmInfo) -> dict[str, Any]:
    """Return the projected area of a 0/1 mask in pixels and mm², with the spacing and the tag used for it.

    `area_mm2` is None, and the reason is stated, if the film has no spacing or its width is not 25 to 50 cm by it.
    """
    pixels, columns = int(np.count_nonzero(mask)), mask.shape[1]
    missing, area = None, None
    spacing = None
    if info.spacing_row is None or info.spacing_column is None:
        missing = "the film has neither a PixelSpacing nor an ImagerPixelSpacing of two positive numbers"
    else:
        spacing = [info.spacing_row, info.spacing_column]
        width = columns * info.spacing_column
        if NARROWEST_MM <= width <= WIDEST_MM:
            area = round(pixels * info.spacing_row * info.spacing_column, 2)
        else:
            missing = (
                f"{columns} columns of {info.spacing_column:g} mm ({info.spacing_tag}) make a film {width / 10:.1f} cm "
                f"wide, outside {NARROWEST_MM / 10:g} to {WIDEST_MM / 10:g} cm: the spacing belongs to another grid"
            )
    return {
        "area_px": pixels,
        "area_mm2": area,
        "area_mm2_missing_because": missing,
        "spacing_mm": spacing,
        "spacing_tag": info.spacing_tag or None,
    }


def draw_film(image: Map, mask: Map, warnings: Sequence[str] = ()) -> Map:
    """Draw a film with its mask outlined in red and lightly filled, above a margin with the finding and the warnings.

    Film and 0/1 mask are uint8 (height, width). The picture is RGB, uint8 (height + margin, width, 3).
    """
    picture = np.repeat(image[:, :, None], 3, axis=2)
    inside = mask != 0
    picture[inside] = np.rint(picture[inside] * (1 - FILL) + np.array(RED) * FILL).astype(np.uint8)
    outline_pixels(picture, mask, RED, max(1, round(max(image.shape) / 600)))
    lines = [FOUND if inside.any() else EMPTY, NOTE]
    return np.vstack([picture, _margin(image.shape[1], lines, [f"warning: {text}" for text in warnings])])


def _margin(width: int, lines: Sequence[str], warnings: Sequence[str]) -> Map:
    """Return a dark strip with text scaled to the width, uint8 (height, width, 3). Warnings are wrapped."""
    sizes = [cv2.getTextSize(line, _FONT, 1.0, 1) for line in lines]
    scale = TEXT_SHARE * width / max(size[0] for size, _ in sizes)
    step = max(4, round(scale * 1.3 * max(size[1] + below for size, below in sizes)))
    letter = max(size[0] / len(line) for line, (size, _) in zip(lines, sizes, strict=True))
    columns = max(1, int((width - step) / (letter * scale)))
    wrapped = [line for text in warnings for line in textwrap.wrap(text, columns, subsequent_indent="  ")]
    strip = np.zeros((step * (len(lines) + len(wrapped)) + step // 2, width, 3), np.uint8)
    for number, line in enumerate([*lines, *wrapped], 1):
        origin = (step // 2, number * step)
        cv2.putText(strip, line, origin, _FONT, scale, (255, 255, 255), max(1, round(scale)), cv2.LINE_AA)
    return strip


def _read_header(path: Path) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The build also accepts films without file meta information.
        return pydicom.dcmread(path, stop_before_pixels=True, force=True)
