"""The schema: bounds, distinct stages, and a batch over ranks."""

from typing import Any

import pydantic
import pytest

from pneumo_dist.config import BatchError, Experiment, LossConfig, StageConfig, accumulation


def stage_of(**values: Any) -> StageConfig:
    return StageConfig.model_validate({"name": "main", **values})


@pytest.mark.parametrize(
    ("world", "whole", "micro", "expected"), [(1, 8, 8, 1), (1, 8, 2, 4), (2, 8, 2, 2), (4, 8, 1, 2), (4, 8, 2, 1)]
)
def test_accumulation_is_global_over_world_times_micro(world: int, whole: int, micro: int, expected: int) -> None:
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
        {"optim": {"lr": 0}},
        {"optim": {"name": "lion"}},
        {"augment": {"hflip": 2}},
        {"name": "../up"},
        {"unknown": 1},
        {"loss": {"bce": 0, "dice": 0, "focal": 0}},
    ],
)
def test_values_out_of_bounds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        stage_of(**values)


def test_models_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        LossConfig().bce = 2.0


def test_stages_need_names_of_their_own() -> None:
    with pytest.raises(pydantic.ValidationError, match="stage names must differ: a, a"):
        Experiment.model_validate({"name": "x", "stages": [{"name": "a"}, {"name": "a"}]})


def descriptions(model: type[pydantic.BaseModel]) -> dict[str, str | None]:
    return {f"{model.__name__}.{name}": field.description for name, field in model.model_fields.items()}


def test_plain_fields_carry_a_description() -> None:
    for model in (StageConfig, LossConfig):
        plain = {name: text for name, text in descriptions(model).items() if name.split(".")[1] not in NESTED}
        assert [name for name, text in plain.items() if not text] == []


NESTED = {"optim", "schedule", "loss", "augment"}
