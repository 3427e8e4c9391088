"""States of optimizers, schedules and scalers that are restored from a checkpoint."""

import math
from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
import torch

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.train.optim import make_optimizer, make_schedule, step_schedule
from pneumo_dist.train.restore import check_optimizer, check_settings
from shards.errors import InputError


def trained(name: str, schedule: dict[str, Any]) -> tuple[torch.optim.Optimizer, Any, StageConfig]:
    """An optimizer and a schedule after two steps and an epoch."""
    stage = StageConfig.model_validate({"name": "main", "optim": {"name": name, "lr": 0.1}, "schedule": schedule})
    parameters = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))]
    optimizer = make_optimizer(parameters, stage)
    plan = make_schedule(optimizer, stage)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    step_schedule(plan, stage.schedule, 0.4, 0.6)
    return optimizer, plan, stage


SCHEDULES: list[dict[str, Any]] = [
    {"name": "constant"},
    {"name": "plateau"},
    {"name": "plateau", "watch": "loss"},
    {"name": "cosine"},
    {"name": "restarts", "t_max": 2},
    {"name": "multistep", "milestones": [1, 3]},
    {"name": "poly"},
]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_states_of_a_training_are_restored(name: str, schedule: dict[str, Any]) -> None:
    optimizer, plan, stage = trained(name, schedule)
    fresh = make_optimizer([torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))], stage)
    new = make_schedule(fresh, stage)
    check_optimizer(fresh, deepcopy(optimizer.state_dict()), "here")
    check_settings(new.state_dict(), deepcopy(plan.state_dict()), "here", "schedule")
    check_settings({}, {}, "here", "scaler")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("state",), None),
        (("param_groups",), []),
        (("param_groups", 0), 5),
        (("param_groups", 0, "lr"), math.nan),
        (("param_groups", 0, "lr"), -0.1),
        (("param_groups", 0, "lr"), "0.1"),
        (("param_groups", 0, "betas"), (0.5, 0.5)),
        (("param_groups", 0, "params"), [0, 1, 2]),
        (("state", 7), {}),
        (("state", 0), {}),
        (("state", 0, "exp_avg"), torch.ones(2)),
        (("state", 0, "exp_avg"), None),
        (("state", 0, "exp_avg_sq"), -torch.ones(3, 2)),
        (("state", 0, "step"), torch.ones(2)),
        (("state", 0, "step"), 3),
    ],
    ids=str,
)
def test_other_states_of_an_optimizer_are_refused_by_position(place: tuple[Any, ...], value: Any) -> None:
    optimizer, _, _ = trained("adam", {})
    saved = deepcopy(optimizer.state_dict())
    inner: Any = saved
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    with pytest.raises(InputError, match="here: damaged at optimizer"):
        check_optimizer(optimizer, saved, "here")


@pytest.mark.parametrize(
    ("schedule", "key", "value"),
    [
        ({"name": "cosine"}, "T_max", 3),
        ({"name": "cosine"}, "last_epoch", -1),
        ({"name": "cosine"}, "last_epoch", 1.5),
        ({"name": "cosine"}, "base_lrs", [0.1, 0.1]),
        ({"name": "cosine"}, "_last_lr", [math.inf]),
        ({"name": "plateau"}, "best", math.nan),
        ({"name": "plateau"}, "num_bad_epochs", "1"),
        ({"name": "multistep", "milestones": [1, 3]}, "milestones", Counter({1: 1})),
    ],
    ids=str,
)
def test_other_settings_of_a_schedule_are_refused_by_key(schedule: dict[str, Any], key: str, value: Any) -> None:
    _, plan, _ = trained("adam", schedule)
    with pytest.raises(InputError, match=rf"here: damaged at schedule\.{key}"):
        check_settings(plan.state_dict(), {**plan.state_dict(), key: value}, "here", "schedule")
    if not key.startswith("_"):
        left = {name: each for name, each in plan.state_dict().items() if name != key}
        with pytest.raises(InputError, match=rf"schedule\.{key}"):
            check_settings(plan.state_dict(), left, "here", "schedule")
