"""Sections of a report that exist once for the holdout and once for the out-of-fold films."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumo_dist.report import plots
from pneumo_dist.report.calibration import Calibration, calibrate, calibrate_by
from pneumo_dist.report.columns import Columns
from pneumo_dist.report.evaluate import EvaluatedFilms, shard_rows
from pneumo_dist.report.films import choose_films, contact_sheet, draw_film, encode_jpeg, sheet_films
from pneumo_dist.report.measures import FalsePositives, Measures, false_positives, measure
from pneumo_dist.report.subgroups import SMALLEST_CELL, Cell, cells, split_by
from pneumo_dist.thresholds.worth import Estimate, SizeRow, by_size, estimate
from shards.dataset.table import Shards
from shards.drawing import encode_image

HOLDOUT, OUT_OF_FOLD = "Holdout", "Out of fold"
# Length of the longer edge of a film on the page, in pixels.
SIDE = 400


@dataclass(frozen=True)
class ShownFilm:
    """A film on the page: picture as a data URL, image id, Dice, and areas of label and prediction.

    `label` and `predicted` are label-grid pixels. The areas in cm² are nan if the pixel spacing is not known.
    """

    picture: str
    id: str
    dice: float
    label: int
    predicted: int
    label_cm2: float
    predicted_cm2: float


@dataclass(frozen=True)
class Distances:
    """Distances between the boundaries of label and prediction, over the films that have both and a known spacing.

    Attributes:
        films: Number of these films.
        hits: Number of positive films that are called positive, whatever their spacing.
        hd95: Mean HD95 in mm.
        hd95_median: Its median, nan for no films.
        nsd: Mean normalised surface distance at 2 mm.
    """

    films: int
    hits: int
    hd95: Estimate
    hd95_median: float
    nsd: Estimate


@dataclass(frozen=True)
class SizeBin:
    """Positive films of nearly equal label size, and the range of the areas in cm² of those with a known spacing.

    Films with a label exactly as large as an end of the bin count here, too, if they are in the next one.
    """

    scores: SizeRow
    known: int
    smallest_cm2: float
    largest_cm2: float


@dataclass(frozen=True)
class SplitSection:
    """The figures and pictures of one split. Plots are data URLs.

    Attributes:
        known_spacing: Number of films with a known pixel spacing.
        wrong_cm2: Mean and median false-positive area in cm² over the negative films with a known spacing.
        unseen: Mean Dice with thresholds of the other folds.
        sizes_plot: None if there are too few positive films.
        calibration: None, like its plot, if the films it would be fitted on do not suffice.
        calibrated_on: Names the films that the calibration is fitted on.
    """

    title: str
    measures: Measures
    wrong: FalsePositives
    known_spacing: int
    wrong_cm2: tuple[float, float]
    distances: Distances
    lesions: int
    lesion_sensitivity: Estimate
    unseen: Estimate | None
    sizes: list[SizeBin]
    sizes_plot: str | None
    subgroups: list[tuple[str, list[Cell]]]
    calibration: Calibration | None
    calibration_plot: str | None
    calibrated_on: str
    films: list[tuple[str, list[ShownFilm]]]

    @property
    def is_biased(self) -> bool:
        """Whether epochs, checkpoints or thresholds were chosen on these films."""
        return self.title != HOLDOUT


def out_of_fold_section(shards: Shards, films: EvaluatedFilms, by: Columns, unseen: Estimate | None) -> SplitSection:
    """Return the section of the out-of-fold films, with each fold calibrated on the other folds."""
    calibration = calibrate(films.scores, films.counts.positive, films.folds)
    return _section(OUT_OF_FOLD, shards, films, by, unseen, calibration, "the other folds")


def holdout_section(shards: Shards, films: EvaluatedFilms, by: Columns, out_of_fold: EvaluatedFilms) -> SplitSection:
    """Return the section of the holdout films, calibrated on the out-of-fold films."""
    fitted_on = out_of_fold.scores, out_of_fold.counts.positive
    calibration = calibrate_by(*fitted_on, films.scores, films.counts.positive)
    return _section(HOLDOUT, shards, films, by, None, calibration, "the out-of-fold films")


def _section(
    title: str,
    shards: Shards,
    films: EvaluatedFilms,
    by: Columns,
    unseen: Estimate | None,
    calibration: Calibration | None,
    calibrated_on: str,
) -> SplitSection:
    counts, rows = films.counts, shard_rows(shards, films.predictions)
    # Up to ten bins, each with enough films to be shown.
    bins = min(10, int(counts.positive.sum()) // SMALLEST_CELL)
    sizes = by_size(counts, bins) if bins else []
    return SplitSection(
        title=title,
        measures=measure(counts, films.scores, films.groups),
        wrong=false_positives(counts),
        known_spacing=int(np.isfinite(films.pixel_cm2).sum()),
        wrong_cm2=_false_cm2(films),
        distances=_distances(films),
        lesions=films.lesions,
        lesion_sensitivity=films.lesion_sensitivity,
        unseen=unseen,
        sizes=[_size_bin(films, row) for row in sizes],
        sizes_plot=inline(plots.draw_sizes(sizes)) if sizes else None,
        subgroups=[(name, cells(split_by(name, values[rows]), counts, films.groups)) for name, values in by.items()],
        calibration=calibration,
        calibration_plot=None if calibration is None else inline(plots.draw_reliability(calibration)),
        calibrated_on=calibrated_on,
        films=_shown_films(shards, rows.tolist(), films),
    )


def _distances(films: EvaluatedFilms) -> Distances:
    known = np.isfinite(films.hd95)
    return Distances(
        films=int(known.sum()),
        hits=int((films.counts.positive & films.counts.called).sum()),
        hd95=estimate(films.hd95[known], films.groups[known]),
        hd95_median=float(np.median(films.hd95[known])) if known.any() else math.nan,
        nsd=estimate(films.nsd[known], films.groups[known]),
    )


def _false_cm2(films: EvaluatedFilms) -> tuple[float, float]:
    areas = (films.counts.predicted * films.pixel_cm2)[~films.counts.positive]
    areas = areas[np.isfinite(areas)]
    return (float(areas.mean()), float(np.median(areas))) if len(areas) else (math.nan, math.nan)


def _size_bin(films: EvaluatedFilms, row: SizeRow) -> SizeBin:
    truth = films.counts.truth
    areas = (truth * films.pixel_cm2)[(truth >= row.smallest) & (truth <= row.largest)]
    areas = areas[np.isfinite(areas)]
    smallest, largest = (float(areas.min()), float(areas.max())) if len(areas) else (math.nan, math.nan)
    return SizeBin(row, len(areas), smallest, largest)


def _shown_films(shards: Shards, rows: Sequence[int], films: EvaluatedFilms) -> list[tuple[str, list[ShownFilm]]]:
    counts, predictions, areas = films.counts, films.predictions, films.pixel_cm2

    def show(i: int) -> ShownFilm:
        picture = draw_film(shards, rows[i], films, i, SIDE)
        return ShownFilm(
            picture=inline(encode_jpeg(picture), "jpeg"),
            id=str(predictions.rows[i]["image_id"]),
            dice=float(counts.dice[i]),
            label=int(counts.truth[i]),
            predicted=int(counts.predicted[i]),
            label_cm2=float(counts.truth[i] * areas[i]),
            predicted_cm2=float(counts.predicted[i] * areas[i]),
        )

    return [(choice.title, [show(i) for i in choice.films]) for choice in choose_films(counts)]


def overlay_sheet(shards: Shards, films: EvaluatedFilms) -> bytes:
    """Return a contact sheet of films from the best Dice to the worst and of false calls, as a PNG file."""
    rows = shard_rows(shards, films.predictions).tolist()
    return encode_image(contact_sheet(shards, rows, films, sheet_films(films.counts)))


def inline(picture: bytes, kind: str = "png") -> str:
    """Return a picture as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
