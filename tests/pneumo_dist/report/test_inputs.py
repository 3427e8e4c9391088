"""Inputs of a report: thresholds, logs and film counts."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_runs import ALONE, log_epochs, store, tune_run

from pneumo_dist.report.inputs import (
    current_thresholds,
    experiments_of,
    read_history,
    run_figures,
    split_counts,
)
from pneumo_dist.thresholds.tune import prediction_histograms
from shards.dataset.table import Shards
from shards.errors import InputError


def test_stages_are_in_the_order_of_the_config(tmp_path: Path) -> None:
    for stage in ("warm", "fine", "fine-10", "fine-2", "aside"):
        log_epochs(tmp_path, stage=stage, folds=(1, 0))
    (tmp_path / "fold0/config.yaml").write_text("stages:\n- name: warm  # exp.yaml\n- name: fine\n")
    history = read_history(tmp_path)
    assert list(history) == ["warm", "fine", "fine-2", "fine-10", "aside"]
    assert list(history["fine"]) == ["fold0", "fold1"]
    shutil.rmtree(tmp_path / "fold0/fine")
    (tmp_path / "fold1/fine/metrics.jsonl").write_text('{"score": 0.1\n')
    with pytest.raises(InputError, match=r"fold1/fine/metrics\.jsonl: not valid JSON"):
        read_history(tmp_path)


def test_figures_are_the_median_speed_and_the_largest_memory(tmp_path: Path) -> None:
    log_epochs(tmp_path / "one")
    log_epochs(tmp_path / "two", folds=(3,))
    histories = [read_history(tmp_path / name) for name in ("one", "two")]
    assert run_figures(histories[:1]).images_per_s == 7.5 and run_figures(histories).images_per_s == 8.0
    histories[0]["only"]["fold0"][0] |= {"images_per_s": 0.0, "peak_memory_mb": 1e6}
    assert run_figures(histories[:1]).images_per_s == 8.0 and run_figures(histories).peak_memory_mb == 512.0
    assert all(math.isnan(value) for value in vars(run_figures([])).values())


def test_films_are_counted_by_split(films: Shards) -> None:
    (count,) = split_counts(films)
    assert (count.split, count.films, count.positives) == ("train", 12, 6)
    assert count.groups == len(set(films.column("group").tolist()))


def test_networks_name_the_experiments(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "one")
    assert experiments_of(predictions, tmp_path, "both") == ["one"]
    predictions.manifest["parts"] = [{"name": f"{name}/fold0/step.pt"} for name in ("..", "gone", ".")]
    assert experiments_of(predictions, tmp_path, "both") == ["both"]
    del predictions.manifest["parts"]
    assert experiments_of(predictions, tmp_path, "both") == ["both"]


def test_thresholds_are_tuned_only_if_they_are_missing_or_out_of_date(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    histograms, tuned, reason = current_thresholds(predictions)
    np.testing.assert_array_equal(histograms, prediction_histograms(predictions, ALONE))
    assert reason == "thresholds.json is missing" and list(tuned.rules) == ["triplet", "components", "stacking"]
    assert tune_run(predictions).rules == tuned.rules
    again, stored, reason = current_thresholds(predictions)
    assert (again, reason) == (None, None) and stored.rules == tuned.rules, "no film is read"
    path = tmp_path / "exp/oof/thresholds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "predictions_sha256": "0" * 64}))
    assert current_thresholds(predictions)[2] == "thresholds.json is out of date"
