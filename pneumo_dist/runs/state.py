"""What a checkpoint holds beside its tensors, as strict models: a run goes on from no value that it did not write."""

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
    """Without other keys: these are handed on by name."""

    model_config = pydantic.ConfigDict(extra="forbid")


class AncestorModel(_Exact):
    """A stage of a lineage; two digests are empty in checkpoints of before 0.2.0."""

    experiment: _Text
    stage: _Text
    fold: Fold
    always_train: bool
    keys_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    films_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    labels_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


LineageModel = Annotated[list[AncestorModel], Field(min_length=1, max_length=10_000)]


class PositionModel(_Exact):
    """Where a stage stands."""

    epoch: _Count
    step: _Count
    total: _Count
    finished: bool
    bad_steps: _Count


class EpochModel(Strict):
    """A validated epoch; its other figures are for people."""

    epoch: _Count
    step: _Count
    score: _Score


class _Stage(Strict):
    name: _Text


class _Experiment(Strict):
    """What comparisons of experiments take for granted; the rest may be of another version."""

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
    """A checkpoint that training wrote."""

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
    """A checkpoint of averaged weights; `parts` names those that it is the mean of."""

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
    """Return whether the stage that a checkpoint is of, or repeats, keeps a moving average of the weights."""
    for stage in state["experiment"]["stages"]:
        if re.fullmatch(rf"{re.escape(stage['name'])}(-[0-9]+)?", state["stage"]):
            optim = stage.get("optim")
            return isinstance(optim, dict) and optim.get("ema_decay") is not None
    return False


def experiment_of(state: Mapping[str, Any], path: Path) -> Experiment:
    """Return the experiment of a checkpoint by the present schema. Raises InputError, naming the key, where it is none.

    Options of another version are refused by name.
    """
    try:
        return Experiment.model_validate(with_present_defaults(state["experiment"]))
    except pydantic.ValidationError as error:
        first = in_order(error)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: its experiment is none of this version ({key}: {first['msg']}); {FIX}") from None
