"""Values of thresholds.json that tune cannot have written are refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_runs import store, tune_run

from pneumo_dist.thresholds.file import read_thresholds
from shards.dataset.table import Shards
from shards.errors import InputError


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"triplet": {"top": 0.5}}', '{"triplet": [1, 2, 3]}'])
def test_damaged_thresholds_are_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "thresholds.json").write_text(text)
    with pytest.raises(InputError, match=r"thresholds\.json: not a thresholds file"):
        read_thresholds(tmp_path / "thresholds.json").rule("triplet")


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
            read_thresholds(path)


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
        read_thresholds(path)
