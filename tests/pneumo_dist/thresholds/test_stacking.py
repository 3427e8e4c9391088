"""The fit of the stacked gate, the search for its threshold compared with a naive one, and what a fold's gate sees."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import naive_dices, store, tune_run, worth_of
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pneumo_dist.maps.store import Predictions
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.thresholds.file import read_thresholds
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.stacking import (
    GateFilms,
    best_stacking,
    cross_rules,
    cross_stacked,
    fit_gate,
    gate_films,
    gate_probabilities,
    stacking_counts,
)
from pneumo_dist.thresholds.tune import film_measures
from shards.dataset.table import Shards
from shards.errors import InputError

OBJECTIVES = (Objective(), Objective(prevalence=0.2), Objective(specificity=0.6), Objective(specificity=1.0))


def random_films(seed: int, count: int = 14) -> GateFilms:
    """Films with maps of few levels, whose features say little about their labels."""
    random = np.random.default_rng(seed)
    histograms = np.zeros((count, 2, 256), np.int64)
    positive = np.arange(count) % 3 == 0
    for film, level in itertools.product(range(count), (0, 40, 90, 200)):
        histograms[film, 0, level] = random.integers(1, 50) * (random.random() < 0.7) + 60
        histograms[film, 1, level] = random.integers(0, 50) * positive[film]
    features = random.normal(size=(count, 2)) + positive[:, None] * 0.8
    features[1] = features[2]  # no threshold separates these two
    return GateFilms(histograms, features, ("mass", "maximum"), np.arange(count) // 5)


def measured(predictions: Predictions, threshold: float = 0.5) -> GateFilms:
    return gate_films(predictions, *film_measures(predictions, None, threshold), threshold)


def noisy(films: Shards, folder: Path) -> Predictions:
    return store(films, folder, specks=0.002, wrong=25, with_classes=True)


@pytest.mark.parametrize("seed", range(4))
def test_fit_is_that_of_scikit_learn_on_standardised_features(seed: int) -> None:
    films = random_films(seed, 60)
    features = films.features * (1, 1000) + (0, -50)
    gate = fit_gate(features, films.positive, films.names)
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(tol=1e-10, max_iter=10_000).fit(scaler.transform(features), films.positive)
    np.testing.assert_allclose(gate.coefficients, reference.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(gate.intercept, reference.intercept_[0], rtol=1e-4)
    found = gate_probabilities(gate, replace(films, features=features))
    np.testing.assert_allclose(found, reference.predict_proba(scaler.transform(features))[:, 1], atol=1e-5)
    assert all(value == float(f"{value:.6g}") for value in (*gate.means, *gate.scales, *gate.coefficients))


def test_feature_without_a_spread_is_no_division_by_zero() -> None:
    films = random_films(0)
    gate = fit_gate(films.features * (1, 0) + (0, 7), films.positive, films.names)
    assert gate.scales[1] == 1 and gate.coefficients[1] == 0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_or_level_is_better(seed: int, objective: Objective) -> None:
    films = random_films(seed)
    rule = best_stacking(films, objective)
    assert rule is not None and rule.stacking is not None
    weights, positive = objective.film_weights(films.positive), films.positive
    found = gate_probabilities(rule.stacking, films)

    def value(threshold: float, level: int) -> tuple[float, float]:
        triplet = replace(rule.triplet, bottom=level / 255)
        tried = replace(rule, triplet=triplet, stacking=replace(rule.stacking, threshold=threshold))  # type: ignore[type-var]
        counts = stacking_counts(films, tried)
        called = 0.0
        if objective.specificity is not None:
            is_allowed = (~counts.called[~positive]).mean() >= objective.specificity - 1e-9
            called = counts.called[positive].mean() if is_allowed else -1.0
        return round(float(called), 9), round(float(np.average(counts.dice, weights=weights)), 9)

    best = max(value(each, level) for each in (0.0, *found.tolist()) for level in range(0, 256, 5))
    assert value(rule.stacking.threshold, round(rule.triplet.bottom * 255)) >= best


def test_threshold_is_in_the_middle_between_two_films(films: Shards, tmp_path: Path) -> None:
    gate_of = measured(noisy(films, tmp_path / "exp"))
    rule = best_stacking(gate_of, Objective())
    assert rule is not None and rule.stacking is not None
    found, threshold = gate_probabilities(rule.stacking, gate_of), rule.stacking.threshold
    below, above = found[found <= threshold].max(), found[found > threshold].min()
    assert threshold == (below + above) / 2 and above - below > 1e-9


def test_stored_numbers_make_the_calls_of_tune(films: Shards, tmp_path: Path) -> None:
    predictions = noisy(films, tmp_path / "exp")
    tune_run(predictions)
    tuned = read_thresholds(tmp_path / "exp/oof/thresholds.json").rule("stacking")
    gate, gate_of = tuned.rule.stacking, measured(predictions)
    assert gate is not None and gate.features == gate_of.names and gate.needs_class
    # By NumPy, from the numbers of the file.
    standard = (gate_of.features - gate.means) / gate.scales
    called = 1 / (1 + np.exp(-(standard @ gate.coefficients + gate.intercept))) > gate.threshold
    for index, (row, p8) in enumerate(predictions):
        film = label_map(p8, predictions.grid(index))
        assert gate.film_probability(film, row["class_probability"]) == gate_probabilities(gate, gate_of)[index]
        assert apply_rule(film, tuned.rule, row["class_probability"]).any() == called[index]
    assert 0 < called.sum() < len(films)
    assert worth_of(predictions, tuned.rule) == pytest.approx((tuned.dice, tuned.called), abs=1e-12)


def test_the_score_of_each_fold_is_that_of_a_gate_from_the_others(films: Shards, tmp_path: Path) -> None:
    predictions = noisy(films, tmp_path / "exp")
    gate_of = measured(predictions)
    rules, dices = cross_rules(gate_of, Objective()), cross_stacked(gate_of, Objective())
    assert rules is not None and dices is not None and sorted(rules) == [0, 1]
    masks = {fold: list(naive_dices(predictions, rule).values()) for fold, rule in rules.items()}
    expected = [masks[fold][index] for index, fold in enumerate(predictions.folds.tolist())]
    np.testing.assert_allclose(dices, expected, atol=1e-12)
    unseen = tune_run(predictions).rule("stacking").unseen
    assert unseen is not None and unseen.mean == pytest.approx(np.mean(expected), abs=1e-12)
    whole = best_stacking(gate_of, Objective())
    assert whole not in rules.values(), "the gate of all films is another one"


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_the_gate_of_a_fold_never_sees_its_films(fold: int) -> None:
    films = random_films(1)
    before, is_in = cross_rules(films, Objective()), films.folds == fold
    assert before is not None
    other = random_films(8)
    features, histograms = films.features.copy(), films.histograms.copy()
    features[is_in], histograms[is_in] = 9 - other.features[is_in], other.histograms[is_in][:, :, ::-1]
    after = cross_rules(replace(films, features=features, histograms=histograms), Objective())
    assert after is not None and after[fold] == before[fold]
    assert all(after[each] != before[each] for each in set(before) - {fold}), "other folds do see them"


def test_holdout_films_are_refused(films: Shards, tmp_path: Path) -> None:
    predictions = noisy(films, tmp_path / "exp")
    predictions.rows[4]["split"] = "holdout"
    with pytest.raises(InputError, match=f"{predictions.rows[4]['key']} is a holdout film, on which no gate is fitted"):
        measured(predictions)


def test_films_of_one_class_have_no_gate(films: Shards, tmp_path: Path) -> None:
    rules = tune_run(store(films, tmp_path / "exp", rle="-1")).rules
    assert "stacking" not in rules
    positive = films.column("has_mask")
    chosen = [*np.flatnonzero(positive)[:1].tolist(), *np.flatnonzero(~positive).tolist()]
    alone = tune_run(store(films, tmp_path / "one", rows=chosen)).rule("stacking")
    assert alone.unseen is None and alone.rule.stacking is not None and not alone.rule.stacking.needs_class


def test_a_film_without_class_probability_leaves_it_out(films: Shards, tmp_path: Path) -> None:
    predictions = noisy(films, tmp_path / "exp")
    predictions.rows[0]["class_probability"] = None
    assert "class_probability" not in measured(predictions).names


def test_numbers_do_not_depend_on_the_order_of_the_films(films: Shards, tmp_path: Path) -> None:
    gate_of = measured(noisy(films, tmp_path / "exp"))
    order = np.random.default_rng(0).permutation(len(gate_of.folds))
    mixed = GateFilms(
        gate_of.histograms[order], gate_of.features[order], gate_of.names, gate_of.folds[order], gate_of.outside
    )
    expected: Rule | None = best_stacking(gate_of, Objective())
    assert best_stacking(mixed, Objective()) == expected is not None
