"""Tuning on stored predictions, compared with the masks themselves."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from report_runs import ALONE, naive_dices, store, tune_run, worth_of

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.masks import Rule, label_map
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.file import summary_lines
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.refine import FilmComponents
from pneumo_dist.thresholds.tune import film_measures, prediction_histograms, tune
from pneumo_dist.thresholds.worth import given_up, plateau
from shards.dataset.table import Shards
from shards.errors import InputError


def test_score_equals_that_of_the_masks_themselves(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    calls: list[None] = []
    histograms = prediction_histograms(predictions, ALONE, lambda: calls.append(None))
    assert len(calls) == 12
    tuned = tune(predictions, histograms)
    dices = list(naive_dices(predictions, Rule(tuned.thresholds.triplet)).values())
    assert tuned.score.dice == pytest.approx(float(np.mean(dices)), abs=1e-12)
    assert (tuned.score.films, tuned.score.positives, tuned.score.always_empty) == (12, 6, 0.5)
    folds = [row["fold"] for row in predictions.rows]
    assert sorted(tuned.folds) == [0, 1]
    for fold, result in tuned.folds.items():
        in_fold = [dice for dice, number in zip(dices, folds, strict=True) if number == fold]
        assert result.films == len(in_fold)
        assert result.dice == pytest.approx(float(np.mean(in_fold)), abs=1e-12)


def test_no_triplet_near_the_best_is_better(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    tuned = tune(predictions, prediction_histograms(predictions, ALONE))
    random = np.random.default_rng(0)
    for _ in range(40):
        top, bottom = random.integers(0, 256, 2) / 255
        other = Rule(Triplet(float(top), int(random.integers(0, 600)), float(bottom)))
        assert np.mean(list(naive_dices(predictions, other).values())) <= tuned.score.dice + 1e-12


def test_two_ranks_read_each_film_once(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    device = torch.device("cpu")
    parts = [prediction_histograms(predictions, Ranks(rank, 2, rank, device)) for rank in (0, 1)]
    whole = prediction_histograms(predictions, ALONE)
    assert [len(part) for part in parts] == [6, 6]
    np.testing.assert_array_equal(whole[0::2], parts[0])
    np.testing.assert_array_equal(whole[1::2], parts[1])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_measure_what_one_film_after_the_other_gives(films: Shards, tmp_path: Path, threads: int) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.002)
    histograms, components = film_measures(predictions, None, 0.5, threads=threads)
    assert sum(len(each.sizes) for each in components) > 20
    for index, (histogram, found) in enumerate(zip(histograms, components, strict=True)):
        film, truth = label_map(predictions.p8(index), predictions.grid(index)), predictions.label(index)
        expected = [np.bincount(each.reshape(-1), minlength=256) for each in (film, film[truth != 0])]
        np.testing.assert_array_equal(histogram, expected)
        above = (film > 127).astype(np.uint8)
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
        np.testing.assert_array_equal(found.sizes, stats[1:, cv2.CC_STAT_AREA])
        np.testing.assert_array_equal(found.hits, np.bincount(numbers[truth != 0], minlength=count)[1:])
        assert found.truth == np.count_nonzero(truth)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_film_without_a_label_is_named(films: Shards, tmp_path: Path, threads: int) -> None:
    predictions = store(films, tmp_path / "exp")
    for index in (5, 6, 9):
        predictions.rows[index]["rle"] = None
    with pytest.raises(InputError, match=f"{predictions.rows[5]['key']} has no label to tune on"):
        film_measures(predictions, None, None, threads=threads)


def test_film_without_a_label_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no label"):
        prediction_histograms(store(films, tmp_path / "exp", rle=None), ALONE)


def test_rules_are_compared_by_one_mean_whatever_they_are_tuned_for(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.001, wrong=25, with_classes=True)
    for objective in (Objective(), Objective(prevalence=0.9), Objective(specificity=0.5)):
        thresholds = tune_run(predictions, objective)
        assert thresholds.objective == objective and thresholds.digest == predictions.digest
        for tuned in thresholds.rules.values():
            assert worth_of(predictions, tuned.rule) == pytest.approx((tuned.dice, tuned.called), abs=1e-12)


@pytest.mark.parametrize("objective", [Objective(), Objective(prevalence=0.9)])
def test_no_other_size_or_gate_is_better_for_the_objective(films: Shards, tmp_path: Path, objective: Objective) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.001, wrong=25, with_classes=True)
    histograms, components = film_measures(predictions, ALONE, 0.5)
    tuned = tune(predictions, histograms, objective, components)
    rules = {name: tuned_rule.rule for name, tuned_rule in tuned.thresholds.rules.items()}
    positive = np.array([film.truth > 0 for film in components])
    weights = objective.film_weights(positive)

    def value(rule: Rule) -> float:
        return round(float(np.average(list(naive_dices(predictions, rule).values()), weights=weights)), 9)

    triplet = rules["triplet"].triplet
    sizes = {0, *(int(size) + 1 for film in components for size in film.sizes)}
    gates = {0.0, *(row["class_probability"] for row in predictions.rows)}
    assert value(rules["components"]) == max(value(Rule(Triplet(0.5, 0, 0.5), smallest_part=size)) for size in sizes)
    assert value(rules["gate"]) == max(value(Rule(triplet, gate=gate)) for gate in gates)
    assert tuned.thresholds.curve is not None and tuned.curve is not None
    assert tuned.thresholds.curve.best == tuned.curve.best
    assert tuned.given_up == given_up(histograms, triplet)
    assert tuned.plateau == plateau(histograms, triplet, weights)


def test_sensitivity_forbids_a_size_or_a_gate_that_empties_a_positive_film(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", wrong=25, with_classes=True)
    positive = [row for row in predictions.rows if row["rle"] != "-1"]
    negative = [row for row in predictions.rows if row["rle"] == "-1"]
    for rows, values in ((positive, (0.1, *[0.9] * 5)), (negative, (0.05, *[0.2] * 5))):
        for row, value in zip(rows, values, strict=True):
            row["class_probability"] = value
    components = [FilmComponents(np.array([7]), np.array([0]), 0)] * 6
    components += [FilmComponents(np.array([size]), np.array([size]), size) for size in (5, 9, 9, 9, 9, 9)]
    histograms = prediction_histograms(predictions, ALONE)
    by_dice = tune(predictions, histograms, Objective(), components).thresholds.rules
    assert by_dice["components"].rule.smallest_part == 8
    by_sensitivity = tune(predictions, histograms, Objective(specificity=0.0), components).thresholds.rules
    assert by_sensitivity["components"].rule.smallest_part == 0
    assert by_sensitivity["gate"].rule.gate == 0.05


@pytest.mark.parametrize("objective", [Objective(prevalence=0.1), Objective(specificity=0.8)])
def test_one_positive_film_is_enough_to_tune_but_not_to_tune_on_the_other_folds(
    films: Shards, tmp_path: Path, objective: Objective
) -> None:
    positive = films.column("has_mask")
    chosen = [*np.flatnonzero(positive)[:1].tolist(), *np.flatnonzero(~positive).tolist()]
    predictions = store(films, tmp_path / "exp", rows=chosen)
    fold = films.column("fold")[chosen[0]]
    assert {row["fold"] for row in predictions.rows} == {0, 1}
    thresholds = tune_run(predictions, objective)
    assert thresholds.unseen is None and "triplet" in thresholds.rules
    content = json.loads((tmp_path / "exp/oof/thresholds.json").read_text())
    assert content["dice_tuned_on_other_folds"] is None and content["score"]["positives"] == 1
    histograms = prediction_histograms(predictions, ALONE)
    text = "\n".join(summary_lines(tune(predictions, histograms, objective)))
    assert (
        f"no score with thresholds of the other folds: outside fold {fold} there are no films with a pneumothorax"
        in text
    )
    assert "with thresholds of the other folds 0" in "\n".join(summary_lines(tune(predictions, histograms)))
