"""Keys of what a stage learns from films without labels."""

from pathlib import Path
from typing import Any

import pydantic
import pytest

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import dump_resolved, load_config
from pneumo_dist.config.record import differing_keys, with_present_defaults
from pneumo_dist.config.stage import StageConfig
from shards.errors import InputError

EMA = {"optim": {"ema_decay": 0.99}}


def stage_of(unlabelled: dict[str, Any] | None, **more: Any) -> StageConfig:
    return StageConfig.model_validate({"name": "main", "micro_batch": 4, **more, "unlabelled": unlabelled})


def test_counts_follow_from_the_share() -> None:
    stage = stage_of({"from": "a/b", "share": 0.25}, global_batch=16)
    assert (stage.unlabelled_films, stage.labelled_batch) == (1, 12)
    plain = stage_of(None, global_batch=16)
    assert (plain.unlabelled_films, plain.labelled_batch) == (0, 16)
    # Shares that are not exact in binary.
    assert stage_of({"from": "a", "share": 0.6}, micro_batch=5, global_batch=5).unlabelled_films == 3


@pytest.mark.parametrize(
    ("unlabelled", "more", "message"),
    [
        ({"share": 0.5}, {}, r"give from \(pseudo-labels\), mean_teacher, or both"),
        ({"from": "a", "share": 0.4}, {}, "share 0.4 of micro_batch 4 is not a whole number of films"),
        (
            {"from": "a", "share": 0.1},
            {"micro_batch": 1},
            "is not a whole number of films that leaves some with labels",
        ),
        ({"from": "a", "share": 1}, {}, "less than 1"),
        ({"mean_teacher": {}}, {}, "unlabelled.mean_teacher needs optim.ema_decay: the teacher is the moving average"),
        ({"from": "../a"}, {}, "pattern"),
        ({"source": "a"}, {}, "Extra inputs are not permitted"),
    ],
)
def test_values_that_cannot_work_are_refused(unlabelled: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        stage_of(unlabelled, **more)


def test_classifier_has_no_map_to_learn(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    lines = [
        "name: x",
        "model: {arch: classifier, classification: {}}",
        "loss: {bce: 0, dice: 0, focal: 0, classification: 1}",
    ]
    path.write_text("\n".join([*lines, "stages: [{name: main, unlabelled: {from: a}}]"]))
    with pytest.raises(InputError, match="stage main: unlabelled is for networks with a map; set it to null"):
        load_config(path)


def test_key_from_is_written_set_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "student.yaml"
    path.write_text("name: student\nstages: [{name: main, micro_batch: 4, unlabelled: {from: teacher/main}}]\n")
    loaded = load_config(path, ["stages.main.unlabelled.from=blend", "unlabelled.share=0.25"])
    unlabelled = loaded.experiment.stages[0].unlabelled
    assert unlabelled is not None and (unlabelled.source, unlabelled.share) == ("blend", 0.25)
    (tmp_path / "again.yaml").write_text(dump_resolved(loaded))
    again = load_config(tmp_path / "again.yaml", is_record=True).experiment
    assert again.stages == loaded.experiment.stages
    recorded = again.model_dump(mode="json")
    assert recorded["stages"][0]["unlabelled"]["from"] == "blend"
    assert Experiment.model_validate_json(again.model_dump_json()) == again
    assert differing_keys(with_present_defaults(recorded), recorded) == []


def test_unknown_key_is_told_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "student.yaml"
    path.write_text("name: student\nstages: [{name: main, unlabelled: {form: teacher/main}}]\n")
    with pytest.raises(InputError, match=r"unknown key stages.main.unlabelled.form; did you mean from"):
        load_config(path)
