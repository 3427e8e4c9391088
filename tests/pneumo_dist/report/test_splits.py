"""Sections of the report for the holdout and the out-of-fold films."""

import base64
from pathlib import Path

import cv2
import pytest
from images import decode
from report_runs import ALONE, store

from pneumo_dist.report.inputs import EvaluatedFilms, evaluate
from pneumo_dist.report.splits import SIDE, holdout_section, inline, out_of_fold_section, overlay_sheet
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.tune import prediction_histograms
from pneumo_dist.thresholds.worth import Estimate
from shards.dataset.table import Shards

RULE = Rule(Triplet(0.5, 40, 0.4))


@pytest.fixture
def evaluated(films: Shards, tmp_path: Path) -> EvaluatedFilms:
    predictions = store(films, tmp_path / "exp", wrong=25)
    return evaluate(predictions, prediction_histograms(predictions, ALONE), RULE)


def test_out_of_fold_films_are_biased_and_calibrated_on_the_other_folds(
    films: Shards, evaluated: EvaluatedFilms
) -> None:
    unseen = Estimate(0.5, 0.4, 0.6)
    section = out_of_fold_section(films, evaluated, ["view"], unseen)
    assert section.is_biased and section.unseen is unseen and section.calibrated_on == "the other folds"
    assert (section.measures.films, section.measures.positives) == (12, 6)
    assert section.sizes == [] and section.sizes_plot is None, "ten positive films are needed"
    assert [column for column, _ in section.subgroups] == ["view"]
    shown = {film.id: film for _, each in section.films for film in each}
    for index, row in enumerate(evaluated.predictions.rows):
        if str(row["image_id"]) in shown:
            film = shown[str(row["image_id"])]
            assert (film.label, film.predicted) == (evaluated.counts.truth[index], evaluated.counts.predicted[index])
            picture = decode(base64.b64decode(film.picture.partition(",")[2]), cv2.IMREAD_COLOR)
            assert max(picture.shape) == SIDE
    assert len(shown) > 6


def test_holdout_is_not_biased_and_calibrated_on_the_out_of_fold_films(
    films: Shards, evaluated: EvaluatedFilms
) -> None:
    section = holdout_section(films, evaluated, [], evaluated)
    assert not section.is_biased and section.unseen is None and section.subgroups == []
    assert section.calibrated_on == "the out-of-fold films" and section.calibration is not None
    assert str(section.calibration_plot).startswith("data:image/png;base64,")


def test_sheet_has_a_cell_for_each_positive_film(films: Shards, evaluated: EvaluatedFilms) -> None:
    sheet = decode(overlay_sheet(films, evaluated), cv2.IMREAD_COLOR)
    assert sheet.shape == (512, 1024, 3), "six films in rows of four"


def test_data_url_holds_the_bytes() -> None:
    assert inline(b"\x00\xff", "jpeg") == f"data:image/jpeg;base64,{base64.b64encode(bytes([0, 255])).decode()}"
