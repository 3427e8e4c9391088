"""Rules that hold for every schema: frozen, described, and with bounds on every number."""

import math
from copy import deepcopy
from typing import Any, get_args

import pydantic
import pytest

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.loss import LossConfig
from pneumo_dist.config.schema import Schema


def number_locations(tree: Any, location: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the locations of the numbers in nested mappings and lists."""
    if isinstance(tree, dict | list):
        inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [each for key, value in inner for each in number_locations(value, (*location, key))]
    return [location] if isinstance(tree, int | float) and not isinstance(tree, bool) else []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300, 10**30, True])
def test_every_number_of_an_experiment_or_ensemble_has_bounds(value: float) -> None:
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
    values = {"image_size": 64, "eval_batch": 2, "thresholds": thresholds}
    ensemble = EnsembleConfig.model_validate({"name": "blend", "members": [member], **values})
    small = Experiment.model_validate({"name": "fcn", "model": {"arch": "fcn", "fcn": {}}, "stages": [{"name": "a"}]})
    for config in (experiment, ensemble, small):
        tree = config.model_dump(mode="json")
        locations = number_locations(tree)
        assert len(locations) > 10
        for location in locations:
            changed = deepcopy(tree)
            inner = changed
            for part in location[:-1]:
                inner = inner[part]
            inner[location[-1]] = value
            with pytest.raises(pydantic.ValidationError):
                type(config).model_validate(changed)
                pytest.fail(f"{location} accepts {value}")


def test_models_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        LossConfig().bce = 2.0


def nested(annotation: Any) -> list[type[Schema]]:
    """Return the schemas in a field's type."""
    parts = (annotation, *get_args(annotation))
    return [part for part in parts if isinstance(part, type) and issubclass(part, Schema)]


def schemas(model: type[Schema]) -> set[type[Schema]]:
    """Return a schema and all schemas in its fields, however deep."""
    parts = [part for field in model.model_fields.values() for part in nested(field.annotation)]
    return {model}.union(*map(schemas, parts))


def test_every_field_has_a_description() -> None:
    every = schemas(Experiment) | schemas(EnsembleConfig)
    assert len(every) >= 18
    undescribed = [
        f"{model.__name__}.{name}"
        for model in every
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert undescribed == []


def test_every_schema_is_frozen_and_forbids_other_keys() -> None:
    for model in schemas(Experiment) | schemas(EnsembleConfig):
        assert model.model_config["frozen"] and model.model_config["extra"] == "forbid", model.__name__
        assert model.__doc__, model.__name__
