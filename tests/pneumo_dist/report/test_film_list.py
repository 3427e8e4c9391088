"""films.csv holds every film with its own figures, and nothing that a spreadsheet runs."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from report_runs import naive_dices, store

from pneumo_dist.report.evaluate import evaluate
from pneumo_dist.report.film_list import HEADER, film_list
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset.table import Shards

RULE = Rule(Triplet(0.5, 40, 0.4))


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_film_has_its_figures(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", wrong=25)
    held_out = store(films, tmp_path / "exp", split="holdout", rows=range(3), fold=None)
    spacing = np.full((12, 2), 3.0)
    spacing[::4] = np.nan
    evaluated = evaluate(predictions, RULE, spacing=spacing)
    rows = rows_of(film_list({"out of fold": evaluated, "holdout": evaluate(held_out, RULE)}))
    assert tuple(rows[0]) == HEADER and [row["set"] for row in rows] == ["out of fold"] * 12 + ["holdout"] * 3
    dices = naive_dices(predictions, RULE)
    for index, (facts, p8) in enumerate(predictions):
        row, mask = rows[index], apply_rule(label_map(p8, predictions.grid(index)), RULE)
        pixels, truth = int(mask.sum()), int(predictions.label(index).sum())
        assert (row["image_id"], row["fold"]) == (facts["image_id"], str(facts["fold"]))
        assert (row["label"], row["called"]) == (str(int(truth > 0)), str(int(pixels > 0)))
        assert (row["label_px"], row["predicted_px"]) == (str(truth), str(pixels))
        assert float(row["dice"]) == pytest.approx(dices[facts["key"]], rel=1e-5)
        assert float(row["score"]) == pytest.approx(float(evaluated.scores[index]), rel=1e-5)
        areas = [row["label_cm2"], row["predicted_cm2"]]
        if index % 4 == 0:
            assert areas == ["", ""]
        else:
            assert list(map(float, areas)) == pytest.approx([truth * 0.09, pixels * 0.09], rel=1e-5)
        has_both = bool(truth and pixels and index % 4)
        assert (row["hd95_mm"] != "", row["nsd_2mm"] != "") == (has_both, has_both)
    assert all(row["fold"] == row["label_cm2"] == "" for row in rows[12:])


def test_no_id_is_run_by_a_spreadsheet(films: Shards, tmp_path: Path) -> None:
    evaluated = evaluate(store(films, tmp_path / "exp", image_id='=HYPERLINK("x")'), RULE)
    rows = rows_of(film_list({"out of fold": evaluated}))
    assert {row["image_id"] for row in rows} == {'\'=HYPERLINK("x")'}
