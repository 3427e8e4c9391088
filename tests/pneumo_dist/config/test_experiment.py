"""The schema: bounds, distinct stages, and a batch over ranks."""

from typing import Any, get_args

import pydantic
import pytest

from pneumo_dist.config.experiment import BatchError, Experiment, StageConfig, accumulation
from pneumo_dist.config.loss import LossConfig
from pneumo_dist.config.schema import Schema


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
        {"loss": {"dice_epsilon": 0}},
        {"loss": {"dice_scope": "global", "dice_over": "image"}},
        {"optim": {"lr_scale": "linear"}},
        {"optim": {"lr_scale": "cubic", "lr_batch": 4}},
        {"optim": {"ema_decay": 1}},
        {"optim": {"clip_norm": 0}},
        {"schedule": {"name": "multistep"}},
        {"schedule": {"name": "multistep", "milestones": (5, 3)}},
        {"schedule": {"name": "multistep", "milestones": (3, 3)}},
        {"schedule": {"name": "cosine", "t_max": 0}},
        {"schedule": {"watch": "dice"}},
        {"sample_rate_end": 0.5},
        {"size_classes": 4},
        {"repeat": "forever"},
        {"augment": {"distortion": {"p": 0.5, "elastic": None, "grid": None, "optical": None}}},
    ],
)
def test_values_out_of_bounds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        stage_of(**values)


@pytest.mark.parametrize(
    ("optim", "values", "message"),
    [
        ({"ema_decay": 0.9}, {}, "swa_epochs and ema_decay are two averages"),
        ({}, {"early_stop": 3}, "needs to know the last epochs; set early_stop: null"),
        ({}, {"epochs": 3}, "swa_epochs 4 are more than the 3 epochs without the 0"),
        ({}, {"freeze_encoder_epochs": 7}, "swa_epochs 4 are more than the 10 epochs without the 7"),
    ],
)
def test_average_of_the_last_epochs_is_refused_where_it_cannot_be(
    optim: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    assert stage_of(optim={"swa_epochs": 4}, freeze_encoder_epochs=6).optim.swa_epochs == 4
    with pytest.raises(pydantic.ValidationError, match=message):
        stage_of(optim={"swa_epochs": 4, **optim}, **values)


def test_models_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        LossConfig().bce = 2.0


def test_stages_need_names_of_their_own() -> None:
    with pytest.raises(pydantic.ValidationError, match="stage names must differ: a, a"):
        Experiment.model_validate({"name": "x", "stages": [{"name": "a"}, {"name": "a"}]})


@pytest.mark.parametrize("head", [None, {"dropout": 0.1}])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_head_and_its_loss_go_together_in_every_stage(head: dict[str, Any] | None, weight: float) -> None:
    fitting = {"name": "a", "loss": {"classification": 0.5 if head else 0.0}}
    given = {"name": "x", "model": {"classification": head}, "stages": [fitting]}
    Experiment.model_validate(given)
    other = {"name": "b", "loss": {"classification": weight}}
    if (head is not None) == (weight > 0):
        Experiment.model_validate({**given, "stages": [fitting, other]})
    else:
        with pytest.raises(pydantic.ValidationError, match=r"stage b: .*go together"):
            Experiment.model_validate({**given, "stages": [fitting, other]})


def nested(annotation: Any) -> list[type[Schema]]:
    """Return the schemas that a field holds."""
    parts = (annotation, *get_args(annotation))
    return [part for part in parts if isinstance(part, type) and issubclass(part, Schema)]


def schemas(model: type[Schema]) -> set[type[Schema]]:
    """Return a schema and all that its fields are made of."""
    parts = [part for field in model.model_fields.values() for part in nested(field.annotation)]
    return {model}.union(*map(schemas, parts))


def test_every_plain_field_carries_a_description() -> None:
    found = schemas(Experiment) | schemas(StageConfig)
    assert len(found) >= 10
    bare = [
        f"{model.__name__}.{name}"
        for model in found
        for name, field in model.model_fields.items()
        if not field.description and not nested(field.annotation)
    ]
    assert bare == []


def test_every_schema_is_frozen_and_takes_no_other_key() -> None:
    for model in schemas(Experiment) | schemas(StageConfig):
        assert model.model_config["frozen"] and model.model_config["extra"] == "forbid", model.__name__
        assert model.__doc__, model.__name__
