"""Before a prediction: networks that are missing, differ, or cannot take their input; nothing is written."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import PLAIN, Trained

from pneumo_dist.config.ensemble import EnsembleConfig, alone
from pneumo_dist.doctor.findings import Status
from pneumo_dist.doctor.prediction import PredictionPlan, film_counts, prediction_findings
from pneumo_dist.doctor.preflight import lines


def asked_of(trained: Trained, **given: Any) -> PredictionPlan:
    config = EnsembleConfig.model_validate({"name": "both", "members": [{"experiment": "plain"}], **given})
    return PredictionPlan(config, None, trained.shards.folder, trained.runs, (), 1, cpu=True)


def errors(asked: PredictionPlan) -> list[str]:
    return lines(prediction_findings(asked, {}), Status.ERROR)


def test_networks_that_are_there_have_no_error_and_nothing_is_made(trained: Trained) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.runs.rglob("*")}
    assert errors(asked_of(trained)) == []
    assert errors(asked_of(trained, members=[{"experiment": "head", "average": "weights"}])) == []
    assert errors(replace(asked_of(trained), config=alone(PLAIN, None, None, True), own=PLAIN)) == []
    assert {path: path.stat().st_mtime_ns for path in trained.runs.rglob("*")} == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"members": [{"experiment": "nobody"}]}, "nobody/fold0: not trained; train that fold first"),
        ({"members": [{"experiment": "plain", "folds": [4]}]}, "fold4: not trained"),
        ({"members": [{"experiment": "plain", "stage": "last"}]}, "has the stages early, main"),
        ({"loader": "synthetic"}, ""),
    ],
)
def test_what_is_not_there_is_one_line(trained: Trained, given: dict[str, Any], words: str) -> None:
    if not words:
        own = PLAIN.model_copy(update={"data": PLAIN.data.model_copy(update={"loader": "synthetic"})})
        found = errors(replace(asked_of(trained), own=own))
        assert len(found) == 1 and "synthetic is for measuring" in found[0]
        return
    (line,) = errors(asked_of(trained, **given))
    assert words in line


def test_a_scale_that_the_network_cannot_take_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumo_dist.doctor import prediction
    from shards.errors import InputError

    def picky(model: object, films: int, channels: int, size: int, training: bool) -> None:
        assert (films, channels, training) == (3, 1, False)
        if size == 96:
            raise InputError("too odd")

    monkeypatch.setattr(prediction, "check_input", picky)
    assert errors(asked_of(trained, tta={"scales": [1, 2]})) == []
    (line,) = errors(asked_of(trained, tta={"scales": [1, 1.5]}))
    assert "cannot take 96 px (too odd); change image_size or tta.scales" in line


def test_films_of_each_split(trained: Trained) -> None:
    assert film_counts(trained.shards.folder) == {"oof": 12, "holdout": 0, "test": 5}


def test_a_fold_without_checkpoints_is_named(trained: Trained, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(trained.runs, tmp_path / "runs", symlinks=True))
    for path in (runs / "plain/fold1/main/checkpoints").iterdir():
        path.unlink()
    (line,) = errors(replace(asked_of(trained), runs=runs))
    assert "plain/fold1/main/checkpoints" in line and "train that fold first" in line
