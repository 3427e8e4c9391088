"""Tuned rules by name."""

from pathlib import Path

import pytest
from report_runs import ALONE, store

from pneumo_dist.scoring.masks import Rule
from pneumo_dist.thresholds.tune import prediction_histograms, tune
from shards.dataset.table import Shards
from shards.errors import InputError


def test_rule_that_was_not_tuned_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    thresholds = tune(predictions, prediction_histograms(predictions, ALONE)).thresholds
    assert thresholds.rule("triplet").rule == Rule(thresholds.triplet)
    with pytest.raises(InputError, match="no rule gate, which needs a classification head; it has triplet"):
        thresholds.rule("gate")
    with pytest.raises(InputError, match=r"exp/oof/thresholds\.json: has no rule components, which needs to be tuned"):
        thresholds.rule("components")
