"""Stages and experiments: bounds, unique names, and a batch divided among ranks."""

from typing import Any

import pydantic
import pytest

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.stage import BatchError, StageConfig, accumulation


def stage_of(**values: Any) -> StageConfig:
    return StageConfig.model_validate({"name": "main", **values})


@pytest.mark.parametrize(
    ("world", "whole", "micro", "expected"), [(1, 8, 8, 1), (1, 8, 2, 4), (2, 8, 2, 2), (4, 8, 1, 2), (4, 8, 2, 1)]
)
def test_accumulation_is_the_global_batch_over_world_size_times_micro_batch(
    world: int, whole: int, micro: int, expected: int
) -> None:
    assert accumulation(stage_of(global_batch=whole, micro_batch=micro), world) == expected


@pytest.mark.parametrize(
    ("world", "whole", "micro", "near", "divisor"),
    [(2, 10, 2, "8 or 12", 1), (3, 4, 2, "6", None), (4, 30, 4, "16 or 32", None), (2, 12, 5, "10 or 20", 6)],
)
def test_indivisible_batch_names_the_nearest_valid_values(
    world: int, whole: int, micro: int, near: str, divisor: int | None
) -> None:
    stage = stage_of(global_batch=whole, micro_batch=micro)
    with pytest.raises(BatchError) as caught:
        accumulation(stage, world)
    message = str(caught.value)
    assert "stage main" in message and f"global_batch: {near}" in message
    assert ("micro_batch:" in message) == (divisor is not None)
    for value in map(int, near.split(" or ")):
        assert accumulation(stage.model_copy(update={"global_batch": value}), world) >= 1
    if divisor:
        other = int(message.rsplit("micro_batch: ", 1)[1])
        assert abs(other - micro) <= abs(divisor - micro)
        assert accumulation(stage.model_copy(update={"micro_batch": other}), world) >= 1


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": 100},
        {"epochs": 0},
        {"sample_rate": 0},
        {"sample_rate": 1.5},
        {"name": "../up"},
        {"unknown": 1},
        {"save_minutes": float("nan")},
        {"image_size": 32_000},
        {"eval_image_size": 100},
        {"image_size": 512, "eval_image_size": 480},
        {"eval_batch": 10**6},
        {"epochs": True},
        {"sample_rate_end": 0.5},
        {"size_classes": 4},
        {"repeat": "forever"},
    ],
)
def test_values_out_of_bounds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        stage_of(**values)


@pytest.mark.parametrize("data", [{"mean": [123.7, 116.3, 103.5]}, {"std": [58.4, 57.1, 57.4]}, {"cache_dir": "a\0b"}])
def test_statistics_on_a_scale_of_255_and_impossible_paths_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Experiment.model_validate({"name": "x", "data": data, "stages": [{"name": "a"}]})


@pytest.mark.parametrize(
    ("optim", "values", "message"),
    [
        ({"ema_decay": 0.9}, {}, "swa_epochs and ema_decay both average the weights"),
        ({}, {"early_stop": 3}, "needs a fixed number of epochs; set early_stop: null"),
        ({}, {"epochs": 3}, "swa_epochs 4 is more than the 3 epochs"),
        ({}, {"freeze_encoder_epochs": 7}, "swa_epochs 4 is more than the 3 epochs"),
    ],
)
def test_impossible_average_of_the_last_epochs_is_refused(
    optim: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    assert stage_of(optim={"swa_epochs": 4}, freeze_encoder_epochs=6).optim.swa_epochs == 4
    with pytest.raises(pydantic.ValidationError, match=message):
        stage_of(optim={"swa_epochs": 4, **optim}, **values)


def test_stage_names_must_be_unique() -> None:
    with pytest.raises(pydantic.ValidationError, match="stage names must be unique: a, a"):
        Experiment.model_validate({"name": "x", "stages": [{"name": "a"}, {"name": "a"}]})


@pytest.mark.parametrize("head", [None, {"dropout": 0.1}])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_head_and_its_loss_go_together_in_every_stage(head: dict[str, Any] | None, weight: float) -> None:
    matching = {"name": "a", "loss": {"classification": 0.5 if head else 0.0}}
    values = {"name": "x", "model": {"classification": head}, "stages": [matching]}
    Experiment.model_validate(values)
    other = {"name": "b", "loss": {"classification": weight}}
    if (head is not None) == (weight > 0):
        Experiment.model_validate({**values, "stages": [matching, other]})
    else:
        with pytest.raises(pydantic.ValidationError, match=r"stage b: set .* together"):
            Experiment.model_validate({**values, "stages": [matching, other]})
