"""Tuning on stored predictions, compared with the masks themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import ALONE, mean_dice_of, naive_dices, store, tune_run

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.file import summary_lines
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.tune import prediction_histograms, tune
from shards.dataset.table import Shards
from shards.errors import InputError


def test_score_equals_that_of_the_masks_themselves(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    heard: list[None] = []
    histograms = prediction_histograms(predictions, ALONE, lambda: heard.append(None))
    assert len(heard) == 12
    tuned = tune(predictions, histograms)
    dices = naive_dices(predictions, tuned.thresholds.triplet)
    assert tuned.score.dice == pytest.approx(float(np.mean(dices)), abs=1e-12)
    assert (tuned.score.films, tuned.score.positives, tuned.score.always_empty) == (12, 6, 0.5)
    folds = [row["fold"] for row in predictions.rows]
    assert sorted(tuned.folds) == [0, 1]
    for fold, result in tuned.folds.items():
        own = [dice for dice, number in zip(dices, folds, strict=True) if number == fold]
        assert result.films == len(own)
        assert result.dice == pytest.approx(float(np.mean(own)), abs=1e-12)


def test_no_triplet_near_the_best_is_better(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    tuned = tune(predictions, prediction_histograms(predictions, ALONE))
    random = np.random.default_rng(0)
    for _ in range(40):
        top, bottom = random.integers(0, 256, 2) / 255
        other = Triplet(float(top), int(random.integers(0, 600)), float(bottom))
        assert np.mean(naive_dices(predictions, other)) <= tuned.score.dice + 1e-12


def test_work_of_two_ranks_covers_each_film_once(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    device = torch.device("cpu")
    parts = [prediction_histograms(predictions, Ranks(rank, 2, rank, device)) for rank in (0, 1)]
    whole = prediction_histograms(predictions, ALONE)
    assert [len(part) for part in parts] == [6, 6]
    np.testing.assert_array_equal(whole[0::2], parts[0])
    np.testing.assert_array_equal(whole[1::2], parts[1])


def test_film_without_a_label_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no label"):
        prediction_histograms(store(films, tmp_path / "exp", rle=None), ALONE)


def test_rules_are_compared_by_one_mean_whatever_they_are_tuned_for(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.001, wrong=25, with_classes=True)
    for objective in (Objective(), Objective(prevalence=0.9), Objective(specificity=0.5)):
        kept = tune_run(predictions, objective)
        assert kept.objective == objective and kept.digest == predictions.digest
        for found in kept.rules.values():
            assert mean_dice_of(predictions, found.rule) == pytest.approx((found.dice, found.called), abs=1e-12)


@pytest.mark.parametrize("objective", [Objective(prevalence=0.1), Objective(specificity=0.8)])
def test_one_positive_film_is_enough_to_tune_but_not_to_tune_on_the_other_folds(
    films: Shards, tmp_path: Path, objective: Objective
) -> None:
    positive = films.column("has_mask")
    chosen = [*np.flatnonzero(positive)[:1].tolist(), *np.flatnonzero(~positive).tolist()]
    predictions = store(films, tmp_path / "exp", rows=chosen)
    fold = films.column("fold")[chosen[0]]
    assert {row["fold"] for row in predictions.rows} == {0, 1}
    kept = tune_run(predictions, objective)
    assert kept.unseen is None and "triplet" in kept.rules
    content = json.loads((tmp_path / "exp/oof/thresholds.json").read_text())
    assert content["dice_tuned_on_other_folds"] is None and content["score"]["positives"] == 1
    histograms = prediction_histograms(predictions, ALONE)
    text = "\n".join(summary_lines(tune(predictions, histograms, objective)))
    assert (
        f"no score with thresholds of the other folds: outside fold {fold} there are no films with a pneumothorax"
        in text
    )
    assert "with thresholds of the other folds 0" in "\n".join(summary_lines(tune(predictions, histograms)))
