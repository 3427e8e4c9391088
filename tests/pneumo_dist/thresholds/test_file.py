"""thresholds.json: what is written is read back exactly, and equals what tune prints."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from report_runs import ALONE, mean_dice_of, store, tune_run

from pneumo_dist.predict.store import Predictions, film_facts, write_block, write_table
from pneumo_dist.report.plots import draw_curve
from pneumo_dist.scoring.masks import Rule, apply_triplet, label_map
from pneumo_dist.thresholds.file import read_thresholds, summary_lines, write_thresholds
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.tune import film_measures, prediction_histograms, tune
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.errors import InputError


def test_thresholds_come_back_exactly_with_the_digest_of_their_predictions(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    tuned = tune(predictions, prediction_histograms(predictions, ALONE))
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)
    found = read_thresholds(tmp_path / "thresholds.json").rule("triplet")
    assert (found.rule, found.called) == (Rule(tuned.thresholds.triplet), tuned.thresholds.rules["triplet"].called)
    content = json.loads((tmp_path / "thresholds.json").read_text())
    assert content["predictions_sha256"] == predictions.digest and content["experiment"] == "exp"
    assert content["folds"]["1"]["films"] == tuned.folds[1].films


def test_thresholds_are_valid_json_without_any_positive_film(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", rle="-1")
    tuned = tune(predictions, prediction_histograms(predictions, ALONE))
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    json.loads((tmp_path / "thresholds.json").read_text(), parse_constant=refuse)


def test_missing_thresholds_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tune.*--triplet"):
        read_thresholds(tmp_path / "thresholds.json").rule("triplet")


def test_what_is_told_and_written_are_the_same_figures(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    histograms = prediction_histograms(predictions, ALONE)
    tuned = tune(predictions, histograms, Objective(specificity=1.0))
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)
    content = json.loads((tmp_path / "thresholds.json").read_text())
    assert content["objective"] == "sensitivity@specificity=1"
    assert content["dice"]["low"] <= content["score"]["dice"] == content["dice"]["mean"] <= content["dice"]["high"]
    assert content["dice_tuned_on_other_folds"]["mean"] <= 1.0
    assert sum(row["films"] for row in content["by_size"]) == content["score"]["positives"] == 6
    calls = [
        apply_triplet(label_map(p8, predictions.grid(i)), tuned.thresholds.triplet).any()
        for i, (_, p8) in enumerate(predictions)
    ]
    assert content["called_positive"] == np.mean(calls)
    text = "\n".join(summary_lines(tuned))
    assert f"out-of-fold mean Dice {content['score']['dice']:.4f} over 12 films" in text
    assert f"called positive: {content['called_positive']:.1%}" in text
    low, high = content["plateau"]["top"]
    assert low <= content["triplet"]["top"] <= high


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
        found = read_thresholds(tmp_path / "thresholds.json").rule(name)
        assert mean_dice_of(predictions, found.rule) == pytest.approx((written[name]["dice"], found.called), abs=1e-12)
    assert written["gate"]["dice"] >= written["triplet"]["dice"]
    assert written["components"]["rule"]["smallest_part"] > 1
    text = "\n".join(summary_lines(tuned))
    assert f"without components below {written['components']['rule']['smallest_part']} px" in text
    assert tuned.curve is not None
    picture = cv2.imdecode(
        np.frombuffer(draw_curve(tuned.curve, tuned.thresholds.rules["components"].rule), np.uint8), 1
    )
    assert picture is not None and picture.std() > 5


def test_what_other_commands_read_is_what_was_tuned(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.003)
    histograms, parts = film_measures(predictions, ALONE, 0.4)
    tuned = tune(predictions, histograms, None, parts, 0.4)
    path = tmp_path / "thresholds.json"
    write_thresholds(path, tuned, predictions)
    kept = read_thresholds(path)
    assert kept.unseen == tuned.thresholds.unseen
    assert kept.rules == tuned.thresholds.rules and kept.rules["components"].rule.triplet.bottom == 0.4
    assert tuned.curve is not None and kept.curve is not None and kept.curve.best == tuned.curve.best
    write_thresholds(path, tune(predictions, histograms), predictions)
    assert read_thresholds(path).curve is None and list(read_thresholds(path).rules) == ["triplet"]


def test_thresholds_of_another_format_are_an_input_error_and_of_none_are_read(films: Shards, tmp_path: Path) -> None:
    tune_run(store(films, tmp_path / "exp"))
    path = tmp_path / "exp/oof/thresholds.json"
    found, content = read_thresholds(path), json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(InputError, match=r"not a thresholds file of format version 1; run"):
        read_thresholds(path)
    del content["format_version"]
    path.write_text(json.dumps(content))
    assert read_thresholds(path).rules == found.rules
