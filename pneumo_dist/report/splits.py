"""The parts of a report that stand once for the holdout and once for the out-of-fold films."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from pneumo_dist.report import plots
from pneumo_dist.report.calibration import Calibration, calibrate, calibrate_by
from pneumo_dist.report.films import (
    CELL,
    choose_films,
    contact_sheet,
    draw_film,
    encode_jpeg,
    sheet_films,
)
from pneumo_dist.report.inputs import EvaluatedFilms, shard_rows
from pneumo_dist.report.measures import FalsePositives, Measures, false_positives, measure
from pneumo_dist.report.subgroups import SMALLEST_CELL, Cell, cells, split_by
from pneumo_dist.thresholds.tune import Estimate
from pneumo_dist.thresholds.worth import SizeRow, by_size
from shards.dataset.table import Shards
from shards.drawing import encode_image

HOLDOUT, OUT_OF_FOLD = "Holdout", "Out of fold"
# Films on the page are drawn with this many pixels along their longer edge.
SIDE = 400


@dataclass(frozen=True)
class Shown:
    """A film on the page: its picture as a data URL, its id, Dice, and label-grid pixels of label and prediction."""

    picture: str
    id: str
    dice: float
    label: int
    predicted: int


@dataclass(frozen=True)
class SplitPart:
    """What is said of the films of a split; plots are data URLs.

    `unseen` is the mean Dice with thresholds of the other folds. `calibrated_on` names the films that the calibration
    was fitted on; it and its plot are None where these films do not suffice, `sizes_plot` where too few are positive.
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
    films: list[tuple[str, list[Shown]]]

    @property
    def is_biased(self) -> bool:
        """Whether epochs, checkpoints or thresholds were picked on these films."""
        return self.title != HOLDOUT


def out_of_fold_part(shards: Shards, judged: EvaluatedFilms, by: Sequence[str], unseen: Estimate | None) -> SplitPart:
    """Return the part of the out-of-fold films, each fold calibrated on the others."""
    found = calibrate(judged.scores, judged.counts.positive, judged.folds)
    return _part(OUT_OF_FOLD, shards, judged, by, unseen, found, "the other folds")


def holdout_part(shards: Shards, judged: EvaluatedFilms, by: Sequence[str], out_of_fold: EvaluatedFilms) -> SplitPart:
    """Return the part of the held-out films, calibrated on the out-of-fold ones."""
    fitted_on = out_of_fold.scores, out_of_fold.counts.positive
    found = calibrate_by(*fitted_on, judged.scores, judged.counts.positive)
    return _part(HOLDOUT, shards, judged, by, None, found, "the out-of-fold films")


def _part(
    title: str,
    shards: Shards,
    judged: EvaluatedFilms,
    by: Sequence[str],
    unseen: Estimate | None,
    calibration: Calibration | None,
    calibrated_on: str,
) -> SplitPart:
    counts, rows = judged.counts, shard_rows(shards, judged.predictions)
    # Ten parts where each then has enough films to be shown.
    parts = min(10, int(counts.positive.sum()) // SMALLEST_CELL)
    sizes = by_size(counts, parts) if parts else []
    return SplitPart(
        title=title,
        measures=measure(counts, judged.scores, judged.groups),
        wrong=false_positives(counts),
        lesions=judged.lesions,
        lesion_sensitivity=judged.lesion_sensitivity,
        unseen=unseen,
        sizes=sizes,
        sizes_plot=inline(plots.draw_sizes(sizes)) if sizes else None,
        subgroups=[(column, cells(split_by(column, shards.column(column)[rows]), counts)) for column in by],
        calibration=calibration,
        calibration_plot=None if calibration is None else inline(plots.draw_reliability(calibration)),
        calibrated_on=calibrated_on,
        films=_films(shards, rows.tolist(), judged),
    )


def _films(shards: Shards, rows: Sequence[int], judged: EvaluatedFilms) -> list[tuple[str, list[Shown]]]:
    counts, predictions = judged.counts, judged.predictions

    def shown(i: int) -> Shown:
        picture = draw_film(shards, rows[i], predictions, i, judged.rule, SIDE)
        return Shown(
            picture=inline(encode_jpeg(picture), "jpeg"),
            id=str(predictions.rows[i]["image_id"]),
            dice=float(counts.dice[i]),
            label=int(counts.truth[i]),
            predicted=int(counts.predicted[i]),
        )

    return [(choice.title, [shown(i) for i in choice.films]) for choice in choose_films(counts)]


def overlay_sheet(shards: Shards, judged: EvaluatedFilms) -> bytes:
    """Return the PNG of a sheet of films from the best Dice to the worst."""
    dices, films = judged.counts.dice, sheet_films(judged.counts)
    rows = shard_rows(shards, judged.predictions).tolist()
    pictures = [draw_film(shards, rows[i], judged.predictions, i, judged.rule, CELL) for i in films]
    return encode_image(contact_sheet(pictures, [f"Dice {dices[i]:.2f}" for i in films]))


def inline(picture: bytes, kind: str = "png") -> str:
    """Return a picture as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
