"""The schema of an ensemble: which checkpoints of which experiments predict together, and how much each counts."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, model_validator

from pneumo_dist.config.experiment import OLD_LOADER_NAME, Experiment
from pneumo_dist.config.load import (
    OVERRIDE,
    in_order,
    load_config,
    mend_for,
    parse_override,
    put,
    read_tree,
    warn_of_old_loader,
)
from pneumo_dist.config.schema import Area, Batch, Count, Fold, Name, Probability, Schema, Side, Weight
from shards.errors import InputErrors


class TtaConfig(Schema):
    """Test-time augmentation: every view of a film counts the same."""

    hflip: bool = True
    """Also predict the film flipped."""
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], Field(min_length=1, max_length=16)] = (1.0,)
    """Sides of the network's input, in parts of image_size, rounded to multiples of 32."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.scales)) != len(self.scales):
            raise ValueError("scales must differ")
        return self


class MemberConfig(Schema):
    """One experiment's share in an ensemble."""

    experiment: Name
    """Its name, which is its folder below --runs."""
    folds: Annotated[tuple[Fold, ...], Field(min_length=1)] | None = None
    """Folds that predict, each once; null is all of them."""
    stage: Name | None = None
    """Stage whose checkpoints predict; null is the last."""
    checkpoints: Literal["best", "top-k", "last"] = "top-k"
    """Which of a fold's checkpoints: the best, the top_k best, or the last epoch's."""
    top_k: Count | None = None
    """Most checkpoints of top-k; null is what the stage keeps."""
    weight: Weight = 1.0
    """How much the member counts, whatever the number of its folds and checkpoints."""
    average: Literal["predictions", "weights"] = "predictions"
    """What is averaged over a fold's checkpoints: their predictions, or their weights, which makes one network."""

    @model_validator(mode="after")
    def _each_fold_once(self) -> Self:
        if self.folds is not None and len(set(self.folds)) != len(self.folds):
            raise ValueError("folds must differ: one that is named twice would count twice")
        return self


class TripletConfig(Schema):
    """Thresholds set by hand."""

    top: Probability
    area: Area
    bottom: Probability


class EnsembleConfig(Schema):
    """Experiments that predict together."""

    name: Name
    """Name of the ensemble and of its folder below --runs."""
    members: Annotated[tuple[MemberConfig, ...], Field(min_length=1, max_length=1000)]
    tta: TtaConfig = TtaConfig()
    image_size: Side | None = None
    """Side of the networks' input and of the stored maps; null is that of the members' stages."""
    eval_batch: Batch | None = None
    """Films per forward pass; null is the smallest of the members' stages."""
    amp: Literal["auto", "bf16", "fp16", "float32"] | None = None
    """Autocast type; null is what each network was trained with."""
    loader: Annotated[Literal["dali", "torch"] | None, OLD_LOADER_NAME] = None
    """What reads the films; null is the first member's."""
    thresholds: TripletConfig | None = None
    """Thresholds of `submit`, in place of those that `tune` finds."""
    smallest_part: Area = 0
    """Connected parts of fewer label-grid pixels are removed by `submit`."""


# What stands below the ensemble's own keys.
PARTS: dict[Any, type[Schema]] = {"members": MemberConfig, "tta": TtaConfig, "thresholds": TripletConfig}


def alone(experiment: Experiment, stage: str | None, top_k: int | None, hflip: bool) -> EnsembleConfig:
    """Return the ensemble of one experiment's folds."""
    member = MemberConfig(experiment=experiment.name, stage=stage, top_k=top_k)
    return EnsembleConfig(name=experiment.name, members=(member,), tta=TtaConfig(hflip=hflip))


def load_either(path: Path, overrides: tuple[str, ...] = ()) -> Experiment | EnsembleConfig:
    """Load an experiment or an ensemble, which is known by its `members`. Raises InputErrors naming file and key."""
    tree = read_tree(path)
    if "members" not in tree:
        return load_config(path, overrides).experiment
    for override in overrides:
        parts, value = parse_override(override)
        put(tree, parts, value)
    is_given = any(override.startswith("loader=") for override in overrides)
    warn_of_old_loader(tree.get("loader"), f"{OVERRIDE if is_given else path}: loader")
    try:
        return EnsembleConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        messages = []
        for each in in_order(error):
            key = ".".join(map(str, each["loc"])) or "config"
            given = any(override.startswith(f"{key}=") for override in overrides)
            message = each["msg"]
            if each["type"] == "extra_forbidden":
                schema = PARTS[each["loc"][0]] if len(each["loc"]) > 1 else EnsembleConfig
                message = f"unknown key; {mend_for(str(each['loc'][-1]), schema.model_fields)}"
            messages.append(f"{OVERRIDE if given else path}: {key}: {message}")
        raise InputErrors(messages) from None
