"""The schema: bounds, distinct stages, and a batch over ranks."""

import math
from copy import deepcopy
from typing import Any, get_args

import pydantic
import pytest

from pneumo_dist.config.ensemble import EnsembleConfig
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
        {"loss": {"bce": float("nan")}},
        {"loss": {"bce": float("inf")}},
        {"optim": {"lr": float("inf")}},
        {"optim": {"lr": 1e30}},
        {"optim": {"clip_norm": float("inf")}},
        {"augment": {"distortion": {"elastic": {"sigma": 1e-30}}}},
        {"augment": {"tone": {"gamma": [0.8, 1e9]}}},
        {"save_minutes": float("nan")},
        {"image_size": 32_000},
        {"eval_batch": 10**6},
        {"epochs": True},
        {"schedule": {"name": "multistep", "milestones": [True]}},
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


def number_places(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the numbers of nested mappings and lists are."""
    if isinstance(tree, dict | list):
        inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [found for key, value in inner for found in number_places(value, (*place, key))]
    return [place] if isinstance(tree, int | float) and not isinstance(tree, bool) else []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300, 10**30, True])
def test_no_number_of_an_experiment_or_ensemble_is_without_bounds(value: float) -> None:
    optim = {"lr_batch": 8, "clip_norm": 1.0, "ema_decay": 0.9}
    stage = {"early_stop": 3, "sample_rate": 0.5, "sample_rate_end": 0.4, "size_classes": 4, "save_every": 5}
    plan = {"name": "multistep", "t_max": 5, "milestones": [3, 5]}
    model = {"decoder_channels": [8, 8, 8, 8, 8], "classification": {}}
    experiment = Experiment.model_validate(
        {
            "name": "full",
            "model": model,
            "stages": [{"name": "main", **stage, "optim": optim, "schedule": plan, "loss": {"classification": 1}}],
        }
    )
    member = {"experiment": "full", "folds": [0, 1], "top_k": 2}
    thresholds = {"top": 0.5, "area": 10, "bottom": 0.5}
    given = {"image_size": 64, "eval_batch": 2, "thresholds": thresholds}
    ensemble = EnsembleConfig.model_validate({"name": "blend", "members": [member], **given})
    small = Experiment.model_validate({"name": "fcn", "model": {"arch": "fcn", "fcn": {}}, "stages": [{"name": "a"}]})
    for config in (experiment, ensemble, small):
        tree = config.model_dump(mode="json")
        places = number_places(tree)
        assert len(places) > 10
        for place in places:
            changed = deepcopy(tree)
            inner = changed
            for part in place[:-1]:
                inner = inner[part]
            inner[place[-1]] = value
            with pytest.raises(pydantic.ValidationError):
                type(config).model_validate(changed)
                pytest.fail(f"{place} takes {value}")


@pytest.mark.parametrize("data", [{"mean": [123.7, 116.3, 103.5]}, {"std": [58.4, 57.1, 57.4]}, {"cache_dir": "a\0b"}])
def test_values_on_a_scale_of_255_and_impossible_paths_are_refused(data: dict[str, Any]) -> None:
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


def test_models_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        LossConfig().bce = 2.0


def test_stage_names_must_be_unique() -> None:
    with pytest.raises(pydantic.ValidationError, match="stage names must be unique: a, a"):
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
        with pytest.raises(pydantic.ValidationError, match=r"stage b: set .* together"):
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
