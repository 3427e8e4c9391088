"""Evaluated films: rows in the shards, spacings, and scores against the masks themselves."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from edited_dataset import edit_rows
from report_runs import ALONE, naive_dices, store

from pneumo_dist.maps.store import Predictions
from pneumo_dist.report.boundaries import boundary_scores
from pneumo_dist.report.evaluate import evaluate, label_spacing, shard_rows
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.tune import prediction_histograms
from shards.dataset.table import Shards
from shards.errors import InputError


def test_rows_are_those_of_the_shards(films: Shards, shapes: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", rows=[7, 2, 5])
    rows = shard_rows(films, predictions)
    assert films.column("key")[rows].tolist() == [row["key"] for row in predictions.rows]
    with pytest.raises(InputError, match=r"has no film .* \(3 missing in all\); give the shards that were predicted"):
        shard_rows(shapes, predictions)


@pytest.fixture(scope="module")
def spaced(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The twelve films of 96 px: two in three of them are 29 cm wide, of the others nothing or nonsense is known."""
    folder = Path(shutil.copytree(films.folder, tmp_path_factory.mktemp("spaced") / "shards"))
    kinds = [(3.0, 3.0), (2.5, 3.0), (3.0, 3.0), (2.5, 3.0), (None, None), (0.14, 0.14)]
    edit_rows(
        folder,
        lambda rows: [
            row.update(zip(("spacing_row", "spacing_column"), kinds[number // 2], strict=True))
            for number, row in enumerate(sorted(rows, key=lambda each: not each["has_mask"]))
        ],
    )
    return Shards(folder)


def test_a_spacing_is_known_if_the_label_grid_is_as_wide_as_a_film(spaced: Shards, tmp_path: Path) -> None:
    predictions = store(spaced, tmp_path / "exp", rows=[9, 3, 5, 1, 0, 2, 4, 6, 7, 8, 10, 11])
    found = label_spacing(spaced, predictions)
    rows = shard_rows(spaced, predictions)
    for index, row in enumerate(rows.tolist()):
        stored = [float(spaced.column(f"spacing_{side}")[row]) for side in ("row", "column")]
        is_wide = 250 <= predictions.rows[index]["label_width"] * stored[1] <= 500
        np.testing.assert_array_equal(found[index], stored if is_wide else [np.nan, np.nan])
    assert 0 < np.isfinite(found[:, 0]).sum() < 12


RULES = [
    Rule(Triplet(0.6, 50, 0.45)),
    Rule(Triplet(0.5, 0, 0.5), smallest_part=30),
    Rule(Triplet(0.6, 9, 0.4), 5, 0.5),
    Rule(Triplet(0.99, 4000, 0.4)),
]


@pytest.mark.parametrize("rule", RULES)
def test_evaluated_films_have_the_scores_of_their_masks(spaced: Shards, tmp_path: Path, rule: Rule) -> None:
    predictions = store(spaced, tmp_path / "exp", specks=0.001, wrong=25, with_classes=True)
    read: list[int] = []
    spacing = label_spacing(spaced, predictions)
    evaluated = evaluate(predictions, rule, spacing=spacing, on_film=lambda: read.append(1))
    assert evaluated.counts.dice.tolist() == pytest.approx(list(naive_dices(predictions, rule).values()), abs=1e-12)
    assert len(evaluated) == len(read) == len(predictions) and evaluated.rule == rule
    np.testing.assert_array_equal(evaluated.histograms, prediction_histograms(predictions, ALONE))
    for index, (row, p8) in enumerate(predictions):
        truth = predictions.label(index)
        mask = apply_rule(label_map(p8, predictions.grid(index)), rule, row["class_probability"])
        has_both = bool(truth.any() and mask.any() and np.isfinite(spacing[index]).all())
        expected = boundary_scores(truth, mask, spacing[index]) if has_both else (np.nan, np.nan)
        np.testing.assert_array_equal((evaluated.hd95[index], evaluated.nsd[index]), expected)
    np.testing.assert_array_equal(evaluated.pixel_cm2, spacing[:, 0] * spacing[:, 1] / 100)


@pytest.mark.parametrize("rule", RULES)
def test_known_histograms_and_threads_change_nothing(films: Shards, tmp_path: Path, rule: Rule) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.001, wrong=25, with_classes=True)
    evaluated = evaluate(predictions, rule)
    read: list[int] = []
    again = evaluate(predictions, rule, evaluated.histograms, on_film=lambda: read.append(1), threads=1)
    assert read == [], "these films were counted when their histograms were made"
    for name in ("predicted", "hits", "truth"):
        np.testing.assert_array_equal(getattr(again.counts, name), getattr(evaluated.counts, name))
    np.testing.assert_array_equal(again.scores, evaluated.scores)
    assert (again.lesions, again.lesion_sensitivity) == (evaluated.lesions, evaluated.lesion_sensitivity)
    assert np.isnan(again.hd95).all() and np.isnan(evaluated.nsd).all(), "without spacings nothing is measured"


def test_a_film_is_read_once(films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, read, p8 = store(films, tmp_path / "exp"), list[int](), Predictions.p8

    def noted(self: Predictions, index: int) -> object:
        read.append(index)
        return p8(self, index)

    monkeypatch.setattr(Predictions, "p8", noted)
    histograms = evaluate(predictions, RULES[1]).histograms
    assert sorted(read) == list(range(12))
    read.clear()
    evaluate(predictions, RULES[0], histograms)
    assert sorted(read) == np.flatnonzero(histograms[:, 1].any(-1)).tolist(), "the positive films alone"


def test_films_without_what_the_rule_needs_are_an_input_error(films: Shards, tmp_path: Path) -> None:
    without = store(films, tmp_path / "other")
    with pytest.raises(InputError, match="no class probability for the gate"):
        evaluate(without, RULES[2])
    unlabelled = store(films, tmp_path / "unlabelled", rle=None)
    with pytest.raises(InputError, match=r"unlabelled/oof/predictions: .* has no label to score; use --split oof"):
        evaluate(unlabelled, RULES[0])
