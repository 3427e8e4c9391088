"""Strict models of a checkpoint's contents. A run never resumes from a value that training does not write."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
from pydantic import Field

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import in_order
from pneumo_dist.config.record import with_present_defaults
from pneumo_dist.config.schema import Fold
from pneumo_dist.network.tensors import check_tensors, is_weights
from pneumo_dist.ranks.precision import Resolved
from shards.errors import InputError
from shards.stored import Strict, first_fault

FIX = "restore it or train again"

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Text = Annotated[str, Field(max_length=300)]
_Score = Annotated[float, Field(ge=0, le=1)]


class _Exact(Strict):
    """Forbids other keys, because the values become keyword arguments."""

    model_config = pydantic.ConfigDict(extra="forbid")


class AncestorModel(_Exact):
    """A stage of a lineage. Checkpoints written before 0.2.0 have no digests of films and labels."""

    experiment: _Text
    stage: _Text
    fold: Fold
    always_train: bool
    keys_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    films_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    labels_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    maps_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


LineageModel = Annotated[list[AncestorModel], Field(min_length=1, max_length=10_000)]


class PositionModel(_Exact):
    """Progress of a stage."""

    epoch: _Count
    step: _Count
    total: _Count
    finished: bool
    bad_steps: _Count


class EpochModel(Strict):
    """A validated epoch. Training does not use its other figures."""

    epoch: _Count
    step: _Count
    score: _Score


class _Stage(Strict):
    name: _Text


class _Experiment(Strict):
    """Keys that comparisons of experiments need. The others may come from another version."""

    name: _Text
    model: dict[str, Any]
    stages: Annotated[list[_Stage], Field(min_length=1)]


class _Checkpoint(Strict):
    version: _Text = "not noted"
    source: _Text = "not noted"
    experiment: _Experiment
    stage: _Text
    fold: Fold
    lineage: LineageModel
    amp: Resolved

    @pydantic.model_validator(mode="after")
    def _of_its_lineage(self) -> Self:
        own = self.lineage[-1]
        if (own.stage, own.fold) != (self.stage, self.fold):
            raise ValueError("its lineage ends with another stage or fold")
        return self


class TrainedModel(_Checkpoint):
    """Contents of a checkpoint from training."""

    world: Annotated[int, Field(ge=1, le=10**6)]
    position: PositionModel
    history: list[EpochModel]
    sums: list[float]
    averaged_epochs: _Count = 0
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> Self:
        epochs = [record.epoch for record in self.history]
        steps = [0, *(record.step for record in self.history), self.position.total]
        if epochs != list(range(self.position.epoch)) or steps != sorted(steps):
            raise ValueError("its history and its position do not agree")
        if self.schedule.get("last_epoch", self.position.epoch) != self.position.epoch:
            raise ValueError("its schedule and its position do not agree")
        return self


class AveragedModel(_Checkpoint):
    """Contents of a checkpoint of averaged weights. `parts` names the checkpoints that were averaged."""

    parts: Annotated[list[_Text], Field(min_length=1)]


def check_header(state: Mapping[str, Any], path: Path) -> None:
    """Raise InputError if a checkpoint holds a value that training never writes; tensors are not read."""
    model: type[pydantic.BaseModel] = TrainedModel if "position" in state else AveragedModel
    try:
        model.model_validate({name: value for name, value in state.items() if name not in ("model", "averaged")})
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {first_fault(error)}; {FIX}") from None
    averaged = state.get("averaged")
    if "averaged" not in state or (averaged is None and "position" in state and _has_moving_average(state)):
        raise InputError(f"{path}: has no averaged weights, which its stage predicts with; {FIX}")
    if not is_weights(state["model"]) or not (averaged is None or is_weights(averaged)):
        raise InputError(f"{path}: its weights are not tensors by name; {FIX}")


def check_state(state: Mapping[str, Any], path: Path) -> None:
    """Raise InputError like `check_header`, and for a number in a tensor that is not finite."""
    check_header(state, path)
    check_tensors(dict(state), path)


def _has_moving_average(state: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's stage keeps a moving average of the weights."""
    for stage in state["experiment"]["stages"]:
        if re.fullmatch(rf"{re.escape(stage['name'])}(-[0-9]+)?", state["stage"]):
            optim = stage.get("optim")
            return isinstance(optim, dict) and optim.get("ema_decay") is not None
    return False


def experiment_of(state: Mapping[str, Any], path: Path) -> Experiment:
    """Return a checkpoint's experiment in the present schema.

    Raises InputError, naming the key, for an option that this version does not have.
    """
    try:
        return Experiment.model_validate(with_present_defaults(state["experiment"]))
    except pydantic.ValidationError as error:
        first = in_order(error)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: this version cannot read its experiment ({key}: {first['msg']}); {FIX}") from None
