"""Sections of the report for the holdout and the out-of-fold films."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from images import decode
from report_runs import store

from pneumo_dist.report.evaluate import EvaluatedFilms, evaluate
from pneumo_dist.report.splits import SIDE, holdout_section, inline, out_of_fold_section, overlay_sheet
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.worth import Estimate
from shards.dataset.table import Shards

RULE = Rule(Triplet(0.5, 40, 0.4))


@pytest.fixture
def evaluated(films: Shards, tmp_path: Path) -> EvaluatedFilms:
    predictions = store(films, tmp_path / "exp", wrong=25)
    # The films of one fold have a spacing of 3 mm.
    spacing = np.where(predictions.folds[:, None] == 0, np.full((len(predictions), 2), 3.0), np.nan)
    return evaluate(predictions, RULE, spacing=spacing)


def test_out_of_fold_films_are_biased_and_calibrated_on_the_other_folds(
    films: Shards, evaluated: EvaluatedFilms
) -> None:
    unseen = Estimate(0.5, 0.4, 0.6)
    section = out_of_fold_section(films, evaluated, {"view": films.column("view")}, unseen)
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
            assert picture.shape[1] == SIDE < picture.shape[0], "a square film above its caption"
            known = evaluated.folds[index] == 0
            areas = film.label * 0.09, film.predicted * 0.09
            assert (film.label_cm2, film.predicted_cm2) == areas if known else np.isnan(film.label_cm2)
    assert len(shown) > 6


def test_holdout_is_not_biased_and_calibrated_on_the_out_of_fold_films(
    films: Shards, evaluated: EvaluatedFilms
) -> None:
    section = holdout_section(films, evaluated, {}, evaluated)
    assert not section.is_biased and section.unseen is None and section.subgroups == []
    assert section.calibrated_on == "the out-of-fold films" and section.calibration is not None
    assert str(section.calibration_plot).startswith("data:image/png;base64,")


def test_figures_in_mm_are_of_the_films_with_a_spacing(films: Shards, evaluated: EvaluatedFilms) -> None:
    section = out_of_fold_section(films, evaluated, {}, None)
    counts, known = evaluated.counts, evaluated.folds == 0
    assert section.known_spacing == known.sum()
    measured = known & counts.positive & counts.called
    assert (section.distances.films, section.distances.hits) == (
        measured.sum(),
        (counts.positive & counts.called).sum(),
    )
    assert section.distances.hd95.mean == pytest.approx(evaluated.hd95[measured].mean())
    assert section.distances.hd95_median == np.median(evaluated.hd95[measured])
    assert section.distances.nsd.mean == pytest.approx(evaluated.nsd[measured].mean())
    wrong = counts.predicted[known & ~counts.positive] * 0.09
    assert section.wrong_cm2 == pytest.approx((wrong.mean(), np.median(wrong))) and wrong.mean() > 0
    without = evaluate(evaluated.predictions, RULE)
    nothing = out_of_fold_section(films, without, {}, None)
    assert (nothing.known_spacing, nothing.distances.films) == (0, 0)
    assert np.isnan([*nothing.wrong_cm2, nothing.distances.hd95.mean, nothing.distances.hd95_median]).all()


def test_sheet_has_a_cell_for_each_positive_film_and_false_call(films: Shards, evaluated: EvaluatedFilms) -> None:
    sheet = decode(overlay_sheet(films, evaluated), cv2.IMREAD_COLOR)
    counts = evaluated.counts
    cells = 6 + min(4, int((~counts.positive & counts.called).sum()))
    assert cells == 10 and sheet.shape[1] == 4 * 260 + 4 and 3 * 290 < sheet.shape[0] < 3 * 350, "rows of four"


def test_data_url_holds_the_bytes() -> None:
    assert inline(b"\x00\xff", "jpeg") == f"data:image/jpeg;base64,{base64.b64encode(bytes([0, 255])).decode()}"
