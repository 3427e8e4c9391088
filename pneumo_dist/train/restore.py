"""Checks of a checkpoint's contents before a stage resumes from it.

A value that training never writes would cause a traceback hours later, or silently change the weights.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.plan import EpochPlan
from shards.errors import InputError

FIX = "restore it or train again"
# Keys that change from epoch to epoch. The others follow from the config. Torch's private keys begin with _.
MOVING = frozenset(
    {"lr", "best", "num_bad_epochs", "cooldown_counter", "last_epoch", "T_cur", "T_i", "scale", "growth_tracker"}
)
# How a step is computed. The present config decides it.
_COMPUTING = frozenset({"fused"})
_MOMENTS = {"Adam": {"step", "exp_avg", "exp_avg_sq"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}


def check_position(state: Mapping[str, Any], plan: EpochPlan, stage: StageConfig, where: object) -> None:
    """Raise InputError if a checkpoint is at a step that these films and settings never reach."""
    position = state["position"]
    epoch, step, total = position["epoch"], position["step"], position["total"]
    before = sum(map(plan.steps, range(epoch)))
    if step > plan.steps(epoch) or total != before + step:
        raise InputError(
            f"{where}: its step {total} is not in epoch {epoch + 1}, which begins after step {before}; {FIX}"
        )
    if stage.optim.swa_epochs is not None:
        number = epoch - (stage.epochs - stage.optim.swa_epochs)
        if state["averaged_epochs"] not in (max(number, 0), max(number + 1, 0)):
            raise InputError(f"{where}: its mean is not that of the stage's last epochs; {FIX}")


def check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], where: object) -> None:
    """Raise InputError if an optimizer's saved state does not fit its parameters and settings."""
    present = optimizer.state_dict()["param_groups"]
    groups, state = saved.get("param_groups"), saved.get("state")
    if not isinstance(state, dict) or not isinstance(groups, list) or len(groups) != len(present):
        raise _refusal(where, "optimizer")
    for group, saved_group in zip(present, groups, strict=True):
        check_settings(group, saved_group, where, "optimizer.param_groups")
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


def check_settings(initial: Mapping[str, Any], saved: object, where: object, name: str) -> None:
    """Raise InputError if the saved state of a schedule, a scaler or a parameter group does not fit this stage.

    All keys must equal the initial ones, except `fused`, which the config decides, and those in MOVING: they must keep
    their type, and be finite or as initially.
    """
    if not isinstance(saved, dict):
        raise _refusal(where, name)
    for key in _differing(initial, saved):
        raise _refusal(where, f"{name}.{key}")


def _differing(initial: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    for key, value in initial.items():
        if key in _COMPUTING:
            continue
        is_private = key.startswith("_")
        if key not in saved:
            # Flags that this version of torch added are off, and it rebuilds its private keys.
            fits = is_private or value is None or value is False
        elif key in MOVING or is_private:
            fits = _has_moved(value, saved[key], key)
        else:
            fits = value == saved[key] and isinstance(value, bool) == isinstance(saved[key], bool)
        if not fits:
            yield key


def _has_moved(initial: Any, saved: Any, key: str) -> bool:
    """Return whether a value that moves could come from training."""
    if isinstance(initial, list):
        same = isinstance(saved, list) and len(saved) == len(initial)
        return same and all(_has_moved(one, other, key) for one, other in zip(initial, saved, strict=True))
    if isinstance(initial, bool) or not isinstance(initial, int | float):
        return type(initial) is type(saved)
    if isinstance(saved, bool) or not isinstance(saved, int if isinstance(initial, int) else int | float):
        return False
    return saved == initial or (math.isfinite(saved) and (saved >= 0 or key == "best"))


def _refusal(where: object, key: str) -> InputError:
    return InputError(f"{where}: damaged at {key}, a value that this stage never writes; {FIX}")
