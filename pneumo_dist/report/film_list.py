"""films.csv: every film of a report with its label, call and figures."""

import math
from collections.abc import Mapping

from pneumo_dist.report.evaluate import EvaluatedFilms
from shards.spreadsheet import csv_text

HEADER = (
    *("image_id", "set", "fold", "label", "called", "dice", "score"),
    *("label_px", "predicted_px", "label_cm2", "predicted_cm2", "hd95_mm", "nsd_2mm"),
)


def film_list(splits: Mapping[str, EvaluatedFilms]) -> str:
    """Return the films of each split as CSV, in the order of the predictions.

    `label` and `called` are 1 for a pneumothorax. A figure that is not known is an empty cell.
    """
    return csv_text([HEADER, *(row for name, films in splits.items() for row in _rows(name, films))])


def _rows(name: str, films: EvaluatedFilms) -> list[tuple[object, ...]]:
    counts, areas = films.counts, films.pixel_cm2
    columns = zip(
        (str(row["image_id"]) for row in films.predictions.rows),
        (row["fold"] for row in films.predictions.rows),
        counts.positive.tolist(),
        counts.called.tolist(),
        counts.dice.tolist(),
        films.scores.tolist(),
        counts.truth.tolist(),
        counts.predicted.tolist(),
        (counts.truth * areas).tolist(),
        (counts.predicted * areas).tolist(),
        films.hd95.tolist(),
        films.nsd.tolist(),
        strict=True,
    )
    return [
        (
            *(film, name, "" if fold is None else fold, int(label), int(called), _figure(dice), _figure(score)),
            *(label_px, predicted_px, *map(_figure, others)),
        )
        for film, fold, label, called, dice, score, label_px, predicted_px, *others in columns
    ]


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
