"""What a checkpoint must hold for a stage to go on from it, besides being whole: all that is taken up is looked at.

A value that training does not write would end in a traceback hours later, or in other weights without a word.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pneumo_dist.config.experiment import StageConfig
from pneumo_dist.data.plan import EpochPlan
from shards.errors import InputError

FIX = "restore it or train again"
# What changes from epoch to epoch; all else follows from the config. Torch's own notes begin with _.
MOVING = frozenset(
    {"lr", "best", "num_bad_epochs", "cooldown_counter", "last_epoch", "T_cur", "T_i", "scale", "growth_tracker"}
)
_MOMENTS = {"Adam": {"step", "exp_avg", "exp_avg_sq"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}


def check_position(state: Mapping[str, Any], plan: EpochPlan, stage: StageConfig, where: object) -> None:
    """Raise InputError where a checkpoint stands at a step that these films and settings do not come to."""
    position = state["position"]
    epoch, step, total = position["epoch"], position["step"], position["total"]
    before = sum(map(plan.steps, range(epoch)))
    if step > plan.steps(epoch) or total != before + step:
        raise InputError(
            f"{where}: its step {total} is none of epoch {epoch + 1}, which begins after step {before}; {FIX}"
        )
    if stage.optim.swa_epochs is not None:
        place = epoch - (stage.epochs - stage.optim.swa_epochs)
        if state["averaged_epochs"] not in (max(place, 0), max(place + 1, 0)):
            raise InputError(f"{where}: its mean is not that of the stage's last epochs; {FIX}")


def check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], where: object) -> None:
    """Raise InputError where an optimizer's saved state is not one of these parameters and settings."""
    own = optimizer.state_dict()["param_groups"]
    groups, state = saved.get("param_groups"), saved.get("state")
    if not isinstance(state, dict) or not isinstance(groups, list) or len(groups) != len(own):
        raise _refusal(where, "optimizer")
    for one, other in zip(own, groups, strict=True):
        check_settings(one, other, where, "optimizer.param_groups")
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    moments = _MOMENTS.get(type(optimizer).__name__, set())
    for number, values in state.items():
        known = isinstance(number, int) and 0 <= number < len(parameters)
        if not known or not isinstance(values, dict) or not moments <= set(values):
            raise _refusal(where, f"optimizer.state.{number}")
        for name, value in values.items():
            if not _is_moment(name, value, parameters[number], needed=name in moments):
                raise _refusal(where, f"optimizer.state.{number}.{name}")


def _is_moment(name: str, value: Any, parameter: torch.Tensor, needed: bool) -> bool:
    if value is None:
        return not needed
    if not isinstance(value, torch.Tensor) or value.shape != (() if name == "step" else parameter.shape):
        return False
    return name not in ("step", "exp_avg_sq") or not bool((value < 0).any())


def check_settings(own: Mapping[str, Any], saved: object, where: object, name: str) -> None:
    """Raise InputError where what is saved of a schedule, a scaler or a group is not as this stage's starts.

    What is MOVING must be of its type, and finite or as it starts.
    """
    if not isinstance(saved, dict):
        raise _refusal(where, name)
    for key in _differing(own, saved):
        raise _refusal(where, f"{name}.{key}")


def _differing(own: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    for key, value in own.items():
        is_own_note = key.startswith("_")
        if key not in saved:
            # A flag that this version of torch has anew is off, and its own notes are made again.
            fits = is_own_note or value is None or value is False
        elif key in MOVING or is_own_note:
            fits = _has_moved(value, saved[key], key)
        else:
            fits = value == saved[key] and isinstance(value, bool) == isinstance(saved[key], bool)
        if not fits:
            yield key


def _has_moved(own: Any, saved: Any, key: str) -> bool:
    if isinstance(own, list):
        same = isinstance(saved, list) and len(saved) == len(own)
        return same and all(_has_moved(one, other, key) for one, other in zip(own, saved, strict=True))
    if isinstance(own, bool) or not isinstance(own, int | float):
        return type(own) is type(saved)
    if isinstance(saved, bool) or not isinstance(saved, int if isinstance(own, int) else int | float):
        return False
    return saved == own or (math.isfinite(saved) and (saved >= 0 or key == "best"))


def _refusal(where: object, place: str) -> InputError:
    return InputError(f"{where}: damaged at {place}, which is none that this stage writes; {FIX}")
