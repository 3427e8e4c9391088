"""Tuned rules by name."""

from pathlib import Path

import pytest
from report_runs import ALONE, store

from pneumo_dist.thresholds.file import read_thresholds, write_thresholds
from pneumo_dist.thresholds.tune import prediction_histograms, tune
from shards.dataset.table import Shards
from shards.errors import InputError


def test_rule_that_was_not_tuned_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    write_thresholds(
        tmp_path / "thresholds.json", tune(predictions, prediction_histograms(predictions, ALONE)), predictions
    )
    with pytest.raises(InputError, match="no rule gate, which needs a classification head; it has triplet"):
        read_thresholds(tmp_path / "thresholds.json").rule("gate")
