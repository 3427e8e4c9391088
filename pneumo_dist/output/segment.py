"""One new film and its prediction become a mask, an overlay, a DICOM Segmentation object and a line of findings."""

import textwrap
import warnings
from collections.abc import Sequence
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

# A chest film shows 25 to 50 cm; a width outside that tells that its spacing is that of another grid.
NARROWEST_MM, WIDEST_MM = 250.0, 500.0
NOTE = "For research use only, not for diagnosis"
FOUND, EMPTY = "pneumothorax: outlined in red", "no pneumothorax found"
RED = (255, 0, 0)
FILL = 0.2
# The longest line of the margin takes this share of the film's width.
TEXT_SHARE = 0.4

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DEFAULT_RULES = FilmRules()


def segment_film(
    path: Path,
    p8: Map,
    grid: LabelGrid,
    rule: Rule,
    class_probability: float | None,
    algorithm: Algorithm,
    out: Path,
    rules: FilmRules = _DEFAULT_RULES,
) -> dict[str, Any]:
    """Write OUT/<name>.mask.png, .overlay.png and .seg.dcm of one film, and return its findings (JSON types only).

    `p8` is the stored prediction, uint8 (size, size); `grid` the film's own label grid; `rules` those that the film was
    taken with. The findings and the pictures name the film and its SOP instance UID, never the patient; the
    segmentation object belongs to the patient's study and does. Raises RejectedFilm where the rules refuse the film and
    InputError where no segmentation object can refer to it, both before anything is written.
    """
    film, source = read_film(path, rules), _read_header(path)
    assert film.image.shape == (grid.height, grid.width), (film.image.shape, grid)
    probabilities = label_map(p8, grid)
    mask = apply_rule(probabilities, rule, class_probability)
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
        "class_probability": class_probability,
        "warnings": list(film.warnings),
        **measured_area(mask, film.info),
        "files": files,
        "for_research_use_only": True,
    }


def measured_area(mask: Map, info: FilmInfo) -> dict[str, Any]:
    """Return the projected area of a 0/1 mask in pixels and mm², the spacing and the tag it was measured with.

    `area_mm2` is None, with the reason beside it, where the film has no spacing or is not 25 to 50 cm wide by it.
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
                f"wide, outside {NARROWEST_MM / 10:g} to {WIDEST_MM / 10:g} cm: the spacing is not this grid's"
            )
    return {
        "area_px": pixels,
        "area_mm2": area,
        "area_mm2_missing_because": missing,
        "spacing_mm": spacing,
        "spacing_tag": info.spacing_tag or None,
    }


def draw_film(image: Map, mask: Map, warnings: Sequence[str] = ()) -> Map:
    """Return a film, its mask outlined in red and lightly filled, over a margin with what it shows and its warnings.

    Both are uint8 (height, width), the mask of 0 and 1; the picture is RGB uint8 (height + margin, width, 3).
    """
    picture = np.repeat(image[:, :, None], 3, axis=2)
    inside = mask != 0
    picture[inside] = np.rint(picture[inside] * (1 - FILL) + np.array(RED) * FILL).astype(np.uint8)
    outline_pixels(picture, mask, RED, max(1, round(max(image.shape) / 600)))
    lines = [FOUND if inside.any() else EMPTY, NOTE]
    return np.vstack([picture, _margin(image.shape[1], lines, [f"warning: {text}" for text in warnings])])


def _margin(width: int, lines: Sequence[str], warnings: Sequence[str]) -> Map:
    """Return a dark strip, uint8 (height, width, 3), with lines of text whose size follows the width.

    Warnings are as large, and are wrapped.
    """
    sizes = [cv2.getTextSize(line, _FONT, 1.0, 1) for line in lines]
    scale = TEXT_SHARE * width / max(size[0] for size, _ in sizes)
    step = max(4, round(scale * 1.3 * max(size[1] + below for size, below in sizes)))
    letter = max(size[0] / len(line) for line, (size, _) in zip(lines, sizes, strict=True))
    columns = max(1, int((width - step) / (letter * scale)))
    wrapped = [part for text in warnings for part in textwrap.wrap(text, columns, subsequent_indent="  ")]
    strip = np.zeros((step * (len(lines) + len(wrapped)) + step // 2, width, 3), np.uint8)
    for number, line in enumerate([*lines, *wrapped], 1):
        place = (step // 2, number * step)
        cv2.putText(strip, line, place, _FONT, scale, (255, 255, 255), max(1, round(scale)), cv2.LINE_AA)
    return strip


def _read_header(path: Path) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Films without file meta information pass the build too.
        return pydicom.dcmread(path, stop_before_pixels=True, force=True)
