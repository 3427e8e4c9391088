"""Thresholds from stored predictions."""

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from report_runs import store, tune_run

from pneumo_dist.predict.store import Predictions, film_facts, write_block, write_table
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.report.plots import draw_curve, draw_surface
from pneumo_dist.scoring.masks import Rule, apply_rule, apply_triplet, label_map
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.file import read_rules, summary_lines, write_thresholds
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.tune import film_measures, prediction_histograms, tune
from pneumo_dist.thresholds.worth import surface
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.errors import InputError

ALONE = Ranks.alone()


def stored(films: Shards, folder: Path, **changes: Any) -> Predictions:
    """Store blurred noisy labels as predictions of the films."""
    random = np.random.default_rng(4)
    content = []
    for index in range(len(films)):
        truth = rle.decode(str(films.column("rle")[index]), 96, 96) * 200.0
        p8 = np.clip(cv2.blur(truth, (5, 5)) + random.normal(20, 15, (96, 96)), 0, 255).astype(np.uint8)
        content.append(({**film_facts(films, index), **changes}, p8))
    write_table(folder, write_block(folder / "pred-00000.tar", content), {"experiment": "exp"})
    return Predictions(folder)


def naive_dices(predictions: Predictions, triplet: Triplet) -> list[float]:
    dices = []
    for index, (row, p8) in enumerate(predictions):
        mask = apply_triplet(label_map(p8, predictions.grid(index)), triplet)
        truth = rle.decode(row["rle"], *mask.shape)
        total = int(mask.sum()) + int(truth.sum())
        dices.append(2 * int((mask & truth).sum()) / total if total else 1.0)
    return dices


def test_score_equals_that_of_the_masks_themselves(films: Shards, tmp_path: Path) -> None:
    predictions = stored(films, tmp_path)
    heard: list[None] = []
    histograms = prediction_histograms(predictions, ALONE, lambda: heard.append(None))
    assert len(heard) == 12
    tuned = tune(predictions, histograms)
    dices = naive_dices(predictions, tuned.triplet)
    assert tuned.score.dice == pytest.approx(float(np.mean(dices)), abs=1e-12)
    assert (tuned.score.films, tuned.score.positives, tuned.score.always_empty) == (12, 6, 0.5)
    folds = [row["fold"] for row in predictions.rows]
    assert sorted(tuned.folds) == [0, 1]
    for fold, result in tuned.folds.items():
        own = [dice for dice, number in zip(dices, folds, strict=True) if number == fold]
        assert result.films == len(own)
        assert result.dice == pytest.approx(float(np.mean(own)), abs=1e-12)


def test_no_triplet_near_the_best_is_better(films: Shards, tmp_path: Path) -> None:
    predictions = stored(films, tmp_path)
    tuned = tune(predictions, prediction_histograms(predictions, ALONE))
    random = np.random.default_rng(0)
    for _ in range(40):
        top, bottom = random.integers(0, 256, 2) / 255
        other = Triplet(float(top), int(random.integers(0, 600)), float(bottom))
        assert np.mean(naive_dices(predictions, other)) <= tuned.score.dice + 1e-12


def test_work_of_two_ranks_covers_each_film_once(films: Shards, tmp_path: Path) -> None:
    predictions = stored(films, tmp_path)
    device = torch.device("cpu")
    parts = [prediction_histograms(predictions, Ranks(rank, 2, rank, device)) for rank in (0, 1)]
    whole = prediction_histograms(predictions, ALONE)
    assert [len(part) for part in parts] == [6, 6]
    np.testing.assert_array_equal(whole[0::2], parts[0])
    np.testing.assert_array_equal(whole[1::2], parts[1])


def test_film_without_a_label_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no label"):
        prediction_histograms(stored(films, tmp_path, rle=None), ALONE)


def test_thresholds_come_back_exactly_with_the_digest_of_their_predictions(films: Shards, tmp_path: Path) -> None:
    predictions = stored(films, tmp_path)
    tuned = tune(predictions, prediction_histograms(predictions, ALONE))
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)
    found = read_rules(tmp_path / "thresholds.json").rule("triplet")
    assert (found.rule, found.called) == (Rule(tuned.triplet), tuned.called)
    content = json.loads((tmp_path / "thresholds.json").read_text())
    assert content["predictions_sha256"] == predictions.digest and content["experiment"] == "exp"
    assert content["folds"]["1"]["films"] == tuned.folds[1].films


def test_thresholds_are_valid_json_without_any_positive_film(films: Shards, tmp_path: Path) -> None:
    predictions = stored(films, tmp_path, rle="-1")
    tuned = tune(predictions, prediction_histograms(predictions, ALONE))
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    json.loads((tmp_path / "thresholds.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"triplet": {"top": 0.5}}', '{"triplet": [1, 2, 3]}'])
def test_damaged_thresholds_are_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "thresholds.json").write_text(text)
    with pytest.raises(InputError, match=r"thresholds\.json: not a thresholds file"):
        read_rules(tmp_path / "thresholds.json").rule("triplet")


def test_missing_thresholds_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tune.*--triplet"):
        read_rules(tmp_path / "thresholds.json").rule("triplet")


def test_what_is_told_and_written_are_the_same_figures(films: Shards, tmp_path: Path) -> None:
    predictions = stored(films, tmp_path)
    histograms = prediction_histograms(predictions, ALONE)
    tuned = tune(predictions, histograms, Objective(specificity=1.0))
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)
    content = json.loads((tmp_path / "thresholds.json").read_text())
    assert content["objective"] == "sensitivity@specificity=1"
    assert content["dice"]["low"] <= content["score"]["dice"] == content["dice"]["mean"] <= content["dice"]["high"]
    assert content["dice_tuned_on_other_folds"]["mean"] <= 1.0
    assert sum(row["films"] for row in content["by_size"]) == content["score"]["positives"] == 6
    calls = [
        apply_triplet(label_map(p8, predictions.grid(i)), tuned.triplet).any() for i, (_, p8) in enumerate(predictions)
    ]
    assert content["called_positive"] == np.mean(calls)
    text = "\n".join(summary_lines(tuned))
    assert f"out-of-fold mean Dice {content['score']['dice']:.4f} over 12 films" in text
    assert f"called positive: {content['called_positive']:.1%}" in text
    low, high = content["plateau"]["top"]
    assert low <= content["triplet"]["top"] <= high


def test_surface_is_a_picture(films: Shards, tmp_path: Path) -> None:
    predictions = stored(films, tmp_path)
    histograms = prediction_histograms(predictions, ALONE)
    triplet = tune(predictions, histograms).triplet
    found = surface(histograms, triplet, np.ones(len(histograms)))
    picture = cv2.imdecode(np.frombuffer(draw_surface(found, triplet), np.uint8), 1)
    assert picture is not None and picture.std() > 10


def mean_dice_of(predictions: Predictions, rule: Rule) -> tuple[float, float]:
    """Mean Dice and share of films with a mask, from the masks themselves."""
    dices, shown = [], []
    for index, (row, p8) in enumerate(predictions):
        mask = apply_rule(label_map(p8, predictions.grid(index)), rule, row["class_probability"])
        truth = rle.decode(row["rle"], *mask.shape)
        total = int(mask.sum()) + int(truth.sum())
        dices.append(2 * int((mask & truth).sum()) / total if total else 1.0)
        shown.append(bool(mask.any()))
    return float(np.mean(dices)), float(np.mean(shown))


def test_every_rule_in_the_file_is_worth_what_it_says(films: Shards, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    content = []
    for index in range(len(films)):
        truth = rle.decode(str(films.column("rle")[index]), 96, 96)
        p8 = cv2.blur(truth * 160.0 + 140.0 * (random.random((96, 96)) > 0.97), (3, 3)).astype(np.uint8)
        likely = float(np.float32(random.uniform(0.3, 1) if truth.any() else random.uniform(0, 0.6)))
        content.append(({**film_facts(films, index), "class_probability": likely}, p8))
    write_table(tmp_path, write_block(tmp_path / "pred-00000.tar", content), {"experiment": "exp"})
    predictions = Predictions(tmp_path)
    histograms, parts = film_measures(predictions, ALONE, 0.1)
    np.testing.assert_array_equal(histograms, prediction_histograms(predictions, ALONE))
    tuned = tune(predictions, histograms, None, parts, 0.1)
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)
    written = json.loads((tmp_path / "thresholds.json").read_text())["rules"]
    assert list(written) == ["triplet", "components", "gate"]
    for name in written:
        found = read_rules(tmp_path / "thresholds.json").rule(name)
        assert mean_dice_of(predictions, found.rule) == pytest.approx((written[name]["dice"], found.called), abs=1e-12)
    assert written["gate"]["dice"] >= written["triplet"]["dice"]
    assert written["components"]["rule"]["smallest_part"] > 1
    text = "\n".join(summary_lines(tuned))
    assert f"without parts below {written['components']['rule']['smallest_part']} px" in text
    assert tuned.curve is not None and tuned.components is not None
    picture = cv2.imdecode(np.frombuffer(draw_curve(tuned.curve, tuned.components.rule), np.uint8), 1)
    assert picture is not None and picture.std() > 5


def test_rule_that_was_not_tuned_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    predictions = stored(films, tmp_path)
    write_thresholds(
        tmp_path / "thresholds.json", tune(predictions, prediction_histograms(predictions, ALONE)), predictions
    )
    with pytest.raises(InputError, match="no rule gate, which needs a classification head; it has triplet"):
        read_rules(tmp_path / "thresholds.json").rule("gate")


def test_rules_are_compared_by_one_mean_whatever_they_are_tuned_for(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.001, wrong=25, with_classes=True)
    for objective in (Objective(), Objective(prevalence=0.9), Objective(specificity=0.5)):
        kept = tune_run(predictions, objective)
        assert kept.objective == objective and kept.digest == predictions.digest
        for found in kept.rules.values():
            assert mean_dice_of(predictions, found.rule) == pytest.approx((found.dice, found.called), abs=1e-12)


def test_what_other_commands_read_is_what_was_tuned(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.003)
    histograms, parts = film_measures(predictions, ALONE, 0.4)
    tuned = tune(predictions, histograms, None, parts, 0.4)
    path = tmp_path / "thresholds.json"
    write_thresholds(path, tuned, predictions)
    kept = read_rules(path)
    assert kept.unseen == tuned.unseen
    assert kept.rules["components"] == tuned.components and kept.rules["components"].rule.triplet.bottom == 0.4
    assert tuned.curve is not None and kept.curve is not None and kept.curve.best == tuned.curve.best
    write_thresholds(path, tune(predictions, histograms), predictions)
    assert read_rules(path).curve is None and list(read_rules(path).rules) == ["triplet"]


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
        f"no score with thresholds of the other folds: besides fold {fold} there are no films with a pneumothorax"
        in text
    )
    assert "with thresholds of the other folds 0" in "\n".join(summary_lines(tune(predictions, histograms)))


@pytest.mark.parametrize("damage", ["rules", "objective", "predictions_sha256", "components_curve"])
def test_thresholds_without_a_part_are_an_input_error(films: Shards, tmp_path: Path, damage: str) -> None:
    tune_run(store(films, tmp_path / "exp"))
    path = tmp_path / "exp/oof/thresholds.json"
    content = json.loads(path.read_text())
    for changed in ({key: value for key, value in content.items() if key != damage}, {**content, damage: [7]}):
        if changed.get(damage) == [7] and damage == "predictions_sha256":
            continue  # a digest of other predictions is told as such
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=r"thresholds\.json: not a thresholds file of format version 1: "):
            read_rules(path)


def test_thresholds_of_another_format_are_an_input_error_and_of_none_are_read(films: Shards, tmp_path: Path) -> None:
    tune_run(store(films, tmp_path / "exp"))
    path = tmp_path / "exp/oof/thresholds.json"
    found, content = read_rules(path), json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(InputError, match=r"not a thresholds file of format version 1; run"):
        read_rules(path)
    del content["format_version"]
    path.write_text(json.dumps(content))
    assert read_rules(path).rules == found.rules


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("rules.triplet.rule.triplet.top", -0.5),
        ("rules.triplet.rule.triplet.bottom", math.nan),
        ("rules.triplet.rule.triplet.area", 1.5),
        ("rules.triplet.rule.gate", -1),
        ("rules.triplet.called", 3),
        ("rules.triplet.dice", "0.5"),
        ("rules.unheard_of", {}),
        ("triplet.area", 1),
        ("components_curve.sizes", [5, 1]),
        ("components_curve.dice", []),
        ("dice_tuned_on_other_folds", {"mean": math.inf, "low": None, "high": None}),
        ("predictions_sha256", "none"),
        ("objective", "dice@prevalence=2"),
    ],
)
def test_values_that_tune_does_not_write_are_refused(films: Shards, tmp_path: Path, place: str, value: Any) -> None:
    tune_run(store(films, tmp_path / "exp"))
    path = tmp_path / "exp/oof/thresholds.json"
    content = json.loads(path.read_text())
    inner = content
    *outer, last = place.split(".")
    for part in outer:
        inner = inner[part]
    inner[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"thresholds\.json: not a thresholds file of format version 1: "):
        read_rules(path)
