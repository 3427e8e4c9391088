"""Checks of a planned prediction: missing networks and input that they do not accept. Nothing is written."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import PLAIN, Trained

from pneumo_dist.config.ensemble import EnsembleConfig, alone
from pneumo_dist.doctor.findings import Status, lines_of
from pneumo_dist.doctor.prediction import PredictionPlan, film_counts, prediction_findings
from shards.dataset.table import Shards


def plan_of(trained: Trained, **changes: Any) -> PredictionPlan:
    config = EnsembleConfig.model_validate({"name": "both", "members": [{"experiment": "plain"}], **changes})
    return PredictionPlan(config, None, trained.shards.folder, trained.runs, (), 1, cpu=True)


def errors(plan: PredictionPlan) -> list[str]:
    return lines_of(prediction_findings(plan, {}), Status.ERROR)


def test_trained_networks_have_no_errors_and_nothing_is_written(trained: Trained) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.runs.rglob("*")}
    assert errors(plan_of(trained)) == []
    assert errors(plan_of(trained, members=[{"experiment": "head", "average": "weights"}])) == []
    assert errors(replace(plan_of(trained), config=alone(PLAIN, None, None, True), experiment=PLAIN)) == []
    assert {path: path.stat().st_mtime_ns for path in trained.runs.rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": [{"experiment": "nobody"}]}, "nobody/fold0: not trained; train that fold first"),
        ({"members": [{"experiment": "plain", "folds": [4]}]}, "fold4: not trained"),
        ({"members": [{"experiment": "plain", "stage": "last"}]}, "has the stages early, main"),
        ({"loader": "synthetic"}, ""),
    ],
)
def test_each_error_is_one_line(trained: Trained, changes: dict[str, Any], words: str) -> None:
    if not words:
        experiment = PLAIN.model_copy(update={"data": PLAIN.data.model_copy(update={"loader": "synthetic"})})
        messages = errors(replace(plan_of(trained), experiment=experiment))
        assert len(messages) == 1 and "synthetic is only for measuring" in messages[0]
        return
    (line,) = errors(plan_of(trained, **changes))
    assert words in line


def test_a_scale_that_a_network_does_not_accept_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumo_dist.doctor import prediction
    from shards.errors import InputError

    def picky(model: object, films: int, channels: int, size: int, training: bool) -> None:
        assert (films, channels, training) == (3, 1, False)
        if size == 96:
            raise InputError("too odd")

    monkeypatch.setattr(prediction, "check_input", picky)
    assert errors(plan_of(trained, tta={"scales": [1, 2]})) == []
    (line,) = errors(plan_of(trained, tta={"scales": [1, 1.5]}))
    assert "does not accept 96 px (too odd); change the member's image_size or tta.scales" in line
    (line,) = errors(plan_of(trained, members=[{"experiment": "plain", "image_size": 96}]))
    assert "does not accept 96 px" in line


def test_films_of_each_split(trained: Trained, half_labelled: Shards) -> None:
    assert film_counts(half_labelled.folder) == {"oof": 12, "holdout": 0, "test": 0, "unlabelled": 10}
    assert film_counts(trained.shards.folder) == {"oof": 12, "holdout": 0, "test": 5}


def test_a_fold_without_checkpoints_is_named(trained: Trained, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(trained.runs, tmp_path / "runs", symlinks=True))
    for path in (runs / "plain/fold1/main/checkpoints").iterdir():
        path.unlink()
    (line,) = errors(replace(plan_of(trained), runs=runs))
    assert "plain/fold1/main/checkpoints" in line and "train that fold first" in line
