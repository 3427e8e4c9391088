"""Sections of a report that exist once for the holdout and once for the out-of-fold films."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from pneumo_dist.report import plots
from pneumo_dist.report.calibration import Calibration, calibrate, calibrate_by
from pneumo_dist.report.films import CELL, choose_films, contact_sheet, draw_film, encode_jpeg, sheet_films
from pneumo_dist.report.inputs import EvaluatedFilms, shard_rows
from pneumo_dist.report.measures import FalsePositives, Measures, false_positives, measure
from pneumo_dist.report.subgroups import SMALLEST_CELL, Cell, cells, split_by
from pneumo_dist.thresholds.worth import Estimate, SizeRow, by_size
from shards.dataset.table import Shards
from shards.drawing import encode_image

HOLDOUT, OUT_OF_FOLD = "Holdout", "Out of fold"
# Length of the longer edge of a film on the page, in pixels.
SIDE = 400


@dataclass(frozen=True)
class ShownFilm:
    """A film on the page: picture as a data URL, image id, Dice, and label-grid pixels of label and prediction."""

    picture: str
    id: str
    dice: float
    label: int
    predicted: int


@dataclass(frozen=True)
class SplitSection:
    """The figures and pictures of one split. Plots are data URLs.

    Attributes:
        unseen: Mean Dice with thresholds of the other folds.
        sizes_plot: None if there are too few positive films.
        calibration: None, like its plot, if the films it would be fitted on do not suffice.
        calibrated_on: Names the films that the calibration is fitted on.
    """

    title: str
    measures: Measures
    wrong: FalsePositives
    lesions: int
    lesion_sensitivity: Estimate
    unseen: Estimate | None
    sizes: list[SizeRow]
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


def out_of_fold_section(
    shards: Shards, films: EvaluatedFilms, by: Sequence[str], unseen: Estimate | None
) -> SplitSection:
    """Return the section of the out-of-fold films, with each fold calibrated on the other folds."""
    calibration = calibrate(films.scores, films.counts.positive, films.folds)
    return _section(OUT_OF_FOLD, shards, films, by, unseen, calibration, "the other folds")


def holdout_section(
    shards: Shards, films: EvaluatedFilms, by: Sequence[str], out_of_fold: EvaluatedFilms
) -> SplitSection:
    """Return the section of the holdout films, calibrated on the out-of-fold films."""
    fitted_on = out_of_fold.scores, out_of_fold.counts.positive
    calibration = calibrate_by(*fitted_on, films.scores, films.counts.positive)
    return _section(HOLDOUT, shards, films, by, None, calibration, "the out-of-fold films")


def _section(
    title: str,
    shards: Shards,
    films: EvaluatedFilms,
    by: Sequence[str],
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
        lesions=films.lesions,
        lesion_sensitivity=films.lesion_sensitivity,
        unseen=unseen,
        sizes=sizes,
        sizes_plot=inline(plots.draw_sizes(sizes)) if sizes else None,
        subgroups=[(column, cells(split_by(column, shards.column(column)[rows]), counts)) for column in by],
        calibration=calibration,
        calibration_plot=None if calibration is None else inline(plots.draw_reliability(calibration)),
        calibrated_on=calibrated_on,
        films=_shown_films(shards, rows.tolist(), films),
    )


def _shown_films(shards: Shards, rows: Sequence[int], films: EvaluatedFilms) -> list[tuple[str, list[ShownFilm]]]:
    counts, predictions = films.counts, films.predictions

    def show(i: int) -> ShownFilm:
        picture = draw_film(shards, rows[i], predictions, i, films.rule, SIDE)
        return ShownFilm(
            picture=inline(encode_jpeg(picture), "jpeg"),
            id=str(predictions.rows[i]["image_id"]),
            dice=float(counts.dice[i]),
            label=int(counts.truth[i]),
            predicted=int(counts.predicted[i]),
        )

    return [(choice.title, [show(i) for i in choice.films]) for choice in choose_films(counts)]


def overlay_sheet(shards: Shards, films: EvaluatedFilms) -> bytes:
    """Return a contact sheet of films from the best Dice to the worst, as a PNG file."""
    dices, shown = films.counts.dice, sheet_films(films.counts)
    rows = shard_rows(shards, films.predictions).tolist()
    pictures = [draw_film(shards, rows[i], films.predictions, i, films.rule, CELL) for i in shown]
    return encode_image(contact_sheet(pictures, [f"Dice {dices[i]:.2f}" for i in shown]))


def inline(picture: bytes, kind: str = "png") -> str:
    """Return a picture as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
