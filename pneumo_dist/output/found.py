"""What a prediction finds on a film: the mask on the film's own grid, a score, and an area."""

from dataclasses import dataclass

import numpy as np

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map, rule_score
from pneumo_dist.scoring.spacing import NARROWEST_MM, WIDEST_MM, is_plausible
from shards.build.sample import NOT_SQUARE
from shards.dataset.table import LabelGrid
from shards.dicom.film import Film, FilmInfo


@dataclass(frozen=True)
class FilmPrediction:
    """The stored prediction of a film: its map, uint8 (size, size), its own label grid, and its class probability."""

    p8: Map
    grid: LabelGrid
    class_probability: float | None = None


@dataclass(frozen=True)
class Area:
    """The projected area of a mask: the shadow on the film, without calibration for magnification.

    Attributes:
        pixels: Number of pixels of the mask.
        mm2: Area in mm², None if it is not known.
        missing_because: Why `mm2` is None, else None.
        spacing_mm: Distances of rows and of columns in mm, None without a spacing.
        spacing_tag: The DICOM element that the spacing is from, None without one.
    """

    pixels: int
    mm2: float | None
    missing_because: str | None
    spacing_mm: tuple[float, float] | None
    spacing_tag: str | None


@dataclass(frozen=True, eq=False)
class Found:
    """What was found on a film. For research use only, not for diagnosis.

    Attributes:
        mask: uint8 of 0 and 1, (height, width) of the film as it is stored in its file or array.
        score: The area-th largest pixel probability, with the area of the bundle's triplet rule, in 0..1. It is above
            the rule's top threshold exactly when the rule calls the film positive. With a stacked gate, its
            probability, which is above the gate's threshold exactly when the gate leaves the mask.
        class_probability: Output of the classification head in 0..1, None without one.
        area: The area of the mask.
        warnings: What the film's file leaves open and what was corrected, one line each.
    """

    mask: Map
    score: float
    class_probability: float | None
    area: Area
    warnings: tuple[str, ...]

    @property
    def called(self) -> bool:
        """Whether a pneumothorax was found: the mask has a pixel."""
        return self.area.pixels > 0

    @property
    def area_px(self) -> int:
        """Number of pixels of the mask."""
        return self.area.pixels

    @property
    def area_mm2(self) -> float | None:
        """Area of the mask in mm², None if it is not known; `area.missing_because` says why."""
        return self.area.mm2


def find(film: Film, prediction: FilmPrediction, rule: Rule) -> Found:
    """Apply a rule to the prediction of a film."""
    grid = prediction.grid
    assert film.image.shape == (grid.height, grid.width), (film.image.shape, grid)
    probabilities = label_map(prediction.p8, grid)
    mask = apply_rule(probabilities, rule, prediction.class_probability)
    return Found(
        mask=mask,
        score=rule_score(probabilities, rule, prediction.class_probability),
        class_probability=prediction.class_probability,
        area=measured_area(mask, film.info),
        warnings=film.warnings if film.aspect == 1 else (*film.warnings, NOT_SQUARE),
    )


def measured_area(mask: Map, info: FilmInfo) -> Area:
    """Return the area of a 0/1 mask, in mm² if the film has a spacing by which it is 25 to 50 cm wide."""
    pixels, columns = int(np.count_nonzero(mask)), mask.shape[1]
    if info.spacing_row is None or info.spacing_column is None:
        missing = (
            "the film has neither a PixelSpacing nor an ImagerPixelSpacing of two positive numbers (pictures have none)"
        )
        return Area(pixels, None, missing, None, None)
    spacing = (info.spacing_row, info.spacing_column)
    width = columns * info.spacing_column
    if is_plausible(columns, info.spacing_column):
        return Area(pixels, round(pixels * spacing[0] * spacing[1], 2), None, spacing, info.spacing_tag)
    missing = (
        f"{columns} columns of {info.spacing_column:g} mm ({info.spacing_tag}) make a film {width / 10:.1f} cm "
        f"wide, outside {NARROWEST_MM / 10:g} to {WIDEST_MM / 10:g} cm: the spacing belongs to another grid"
    )
    return Area(pixels, None, missing, spacing, info.spacing_tag)
