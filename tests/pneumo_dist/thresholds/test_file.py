"""thresholds.json is read back exactly as written, and agrees with what tune prints."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from report_runs import ALONE, store, tune_run, worth_of

from pneumo_dist.maps.store import Predictions, encode_map, film_facts, write_block, write_table
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.thresholds.file import read_thresholds, summary_lines, write_thresholds
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.tune import film_measures, prediction_histograms, tune
from shards.dataset.table import Shards
from shards.errors import InputError


def test_thresholds_are_read_back_exactly_with_the_digest_of_their_predictions(films: Shards, tmp_path: Path) -> None:
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


def test_missing_thresholds_name_the_command_that_writes_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tune.*--triplet"):
        read_thresholds(tmp_path / "thresholds.json").rule("triplet")


def test_printed_and_written_figures_agree(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    histograms = prediction_histograms(predictions, ALONE)
    tuned = tune(predictions, histograms, Objective(specificity=1.0))
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)
    content = json.loads((tmp_path / "thresholds.json").read_text())
    assert content["objective"] == "sensitivity@specificity=1"
    assert content["dice"]["low"] <= content["score"]["dice"] == content["dice"]["mean"] <= content["dice"]["high"]
    assert content["dice_tuned_on_other_folds"]["mean"] <= 1.0
    assert sum(row["films"] for row in content["by_size"]) == content["score"]["positives"] == 6
    assert content["called_positive"] == worth_of(predictions, Rule(tuned.thresholds.triplet))[1]
    text = "\n".join(summary_lines(tuned))
    assert f"out-of-fold mean Dice {content['score']['dice']:.4f} over 12 films" in text
    assert f"called positive: {content['called_positive']:.1%}" in text
    low, high = content["plateau"]["top"]
    assert low <= content["triplet"]["top"] <= high


def test_worth_of_every_rule_in_the_file_is_that_of_its_masks(films: Shards, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    content = []
    for index in range(len(films)):
        truth = films.label(index)
        p8 = cv2.blur(truth * 160.0 + 140.0 * (random.random((96, 96)) > 0.97), (3, 3)).astype(np.uint8)
        likely = float(np.float32(random.uniform(0.3, 1) if truth.any() else random.uniform(0, 0.6)))
        content.append(({**film_facts(films, index), "class_probability": likely}, encode_map(p8)))
    write_table(tmp_path, write_block(tmp_path / "pred-00000.tar", content), {"experiment": "exp"})
    predictions = Predictions(tmp_path)
    histograms, parts = film_measures(predictions, ALONE, 0.1)
    np.testing.assert_array_equal(histograms, prediction_histograms(predictions, ALONE))
    tuned = tune(predictions, histograms, None, parts, 0.1)
    write_thresholds(tmp_path / "thresholds.json", tuned, predictions)
    written = json.loads((tmp_path / "thresholds.json").read_text())["rules"]
    assert list(written) == ["triplet", "components", "gate", "stacking"]
    for name in written:
        tuned_rule = read_thresholds(tmp_path / "thresholds.json").rule(name)
        worth = written[name]["dice"], tuned_rule.called
        assert worth_of(predictions, tuned_rule.rule) == pytest.approx(worth, abs=1e-12)
    assert written["gate"]["dice"] >= written["triplet"]["dice"]
    assert written["components"]["rule"]["smallest_part"] > 1
    text = "\n".join(summary_lines(tuned))
    assert f"without components below {written['components']['rule']['smallest_part']} px" in text


def test_other_commands_read_what_was_tuned(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", specks=0.003)
    histograms, parts = film_measures(predictions, ALONE, 0.4)
    tuned = tune(predictions, histograms, None, parts, 0.4)
    path = tmp_path / "thresholds.json"
    write_thresholds(path, tuned, predictions)
    stored = read_thresholds(path)
    assert stored.unseen == tuned.thresholds.unseen
    assert stored.rules == tuned.thresholds.rules and stored.rules["components"].rule.triplet.bottom == 0.4
    assert tuned.curve is not None and stored.curve is not None and stored.curve.best == tuned.curve.best
    write_thresholds(path, tune(predictions, histograms), predictions)
    assert read_thresholds(path).curve is None and list(read_thresholds(path).rules) == ["triplet"]


def test_another_format_version_is_an_input_error_and_a_missing_one_is_read(films: Shards, tmp_path: Path) -> None:
    tune_run(store(films, tmp_path / "exp"))
    path = tmp_path / "exp/oof/thresholds.json"
    found, content = read_thresholds(path), json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(InputError, match=r"not a thresholds file of format version 1; run"):
        read_thresholds(path)
    del content["format_version"]
    path.write_text(json.dumps(content))
    assert read_thresholds(path).rules == found.rules
