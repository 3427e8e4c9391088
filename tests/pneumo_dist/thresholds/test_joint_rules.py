"""The rules of the joint searches in tune: their worth is that of their masks, and their score of unseen films too."""

from pathlib import Path

import numpy as np
import pytest
from report_runs import naive_dices, store, worth_of

from pneumo_dist.maps.store import Predictions
from pneumo_dist.thresholds.file import read_thresholds, summary_lines, write_thresholds
from pneumo_dist.thresholds.joint_rules import joint_rules
from pneumo_dist.thresholds.levels import FilmLevels, level_measures
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.tune import TuningResult, film_measures, tune
from shards.dataset.table import Shards
from shards.errors import InputError


@pytest.fixture(scope="module")
def specked(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictions, list[FilmLevels]]:
    predictions = store(films, tmp_path_factory.mktemp("specked") / "exp", specks=0.001, wrong=25)
    return predictions, level_measures(predictions)


def tuned(predictions: Predictions, levels: list[FilmLevels], objective: Objective | None = None) -> TuningResult:
    histograms, components = film_measures(predictions, None, 0.5)
    return tune(predictions, histograms, objective, components, 0.5, levels)


@pytest.mark.parametrize("objective", [Objective(), Objective(prevalence=0.8)])
def test_joint_rules_are_no_worse_than_any_other_for_the_objective(
    specked: tuple[Predictions, list[FilmLevels]], objective: Objective
) -> None:
    predictions, levels = specked
    rules = tuned(predictions, levels, objective).thresholds.rules
    weights = objective.film_weights(np.array([level.truth > 0 for level in levels]))
    worth = {
        name: float(np.average(list(naive_dices(predictions, each.rule).values()), weights=weights))
        for name, each in rules.items()
        if each.rule.stacking is None
    }
    assert list(worth) == ["triplet", "components", "threshold-components", "triplet-components"]
    assert worth["threshold-components"] >= worth["components"] - 1e-12
    assert worth["triplet-components"] >= max(worth["threshold-components"], worth["triplet"]) - 1e-12
    assert rules["triplet-components"].rule.smallest_part > 1, "the size matters"
    for each in rules.values():
        assert worth_of(predictions, each.rule) == pytest.approx((each.dice, each.called), abs=1e-12)


def test_unseen_films_are_scored_under_rules_of_the_other_folds(
    specked: tuple[Predictions, list[FilmLevels]],
) -> None:
    predictions, levels = specked
    whole = joint_rules(levels, Objective(), predictions.folds, predictions.groups)
    one_fold = np.zeros(len(levels), np.int64)
    names = [each.name for each in whole]
    dices: dict[str, list[float]] = {name: [] for name in names}
    keys = np.array([row["key"] for row in predictions.rows])
    for fold in (0, 1):
        others = [level for level, number in zip(levels, predictions.folds, strict=True) if number != fold]
        for each in joint_rules(others, Objective(), one_fold[: len(others)], keys[: len(others)]):
            assert each.unseen is None, "all these films are in one fold"
            values = naive_dices(predictions, each.rule)
            dices[each.name] += [values[key] for key in keys[predictions.folds == fold]]
    for each in whole:
        assert each.unseen is not None
        assert each.unseen.mean == pytest.approx(float(np.mean(dices[each.name])), abs=1e-12)
        assert each.unseen.low <= each.unseen.mean <= each.unseen.high


def test_a_specificity_leaves_out_the_triplet_and_is_reached(
    specked: tuple[Predictions, list[FilmLevels]], tmp_path: Path
) -> None:
    predictions, levels = specked
    result = tuned(predictions, levels, Objective(specificity=1.0))
    rules = result.thresholds.rules
    assert "triplet-components" not in rules
    dices = naive_dices(predictions, rules["threshold-components"].rule)
    empty = [dices[row["key"]] for row in predictions.rows if row["rle"] == "-1"]
    assert empty == [1.0] * len(empty)
    write_thresholds(tmp_path / "thresholds.json", result, predictions)
    with pytest.raises(InputError, match=r"no rule triplet-components, which needs to be tuned with --joint, for mean"):
        read_thresholds(tmp_path / "thresholds.json").rule("triplet-components")


def test_other_commands_read_joint_rules(specked: tuple[Predictions, list[FilmLevels]], tmp_path: Path) -> None:
    predictions, levels = specked
    result = tuned(predictions, levels)
    write_thresholds(tmp_path / "thresholds.json", result, predictions)
    assert read_thresholds(tmp_path / "thresholds.json").rules == result.thresholds.rules
    text = "\n".join(summary_lines(result))
    for name in ("threshold-components", "triplet-components"):
        each = result.thresholds.rules[name]
        assert each.unseen is not None
        assert (
            f"components from {each.rule.smallest_part} px: mean Dice {each.dice:.4f}, with thresholds of the" in text
        )
        assert f"the other folds {each.unseen.mean:.4f}, 95 %" in text


def test_rules_of_no_positive_film_leave_all_films_empty(
    specked: tuple[Predictions, list[FilmLevels]],
) -> None:
    predictions, levels = specked
    negative = [level for level in levels if not level.truth]
    for each in joint_rules(
        negative, Objective(), predictions.folds[: len(negative)], predictions.groups[: len(negative)]
    ):
        assert (each.dice, each.called) == (1.0, 0.0)
