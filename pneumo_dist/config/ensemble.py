"""Schema of an ensemble: the checkpoints of experiments that predict together, and their weights."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, model_validator

from pneumo_dist.config.experiment import OLD_LOADER_NAME, Experiment
from pneumo_dist.config.load import (
    OVERRIDE,
    fix_for,
    in_order,
    load_config,
    parse_override,
    put,
    read_tree,
    warn_of_old_loader,
)
from pneumo_dist.config.rules import RuleName
from pneumo_dist.config.schema import Area, Batch, Count, Fold, Name, Probability, Schema, Side, Weight
from shards.errors import InputError, InputErrors


class TtaConfig(Schema):
    """Test-time augmentation: the views of a film whose predictions are averaged."""

    hflip: bool = True
    """Also predict the horizontally flipped film."""
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], Field(min_length=1, max_length=16)] = (1.0,)
    """Sides of the views, as factors of the side of each network's input, rounded to multiples of 32."""
    scale_weights: tuple[Weight, ...] | None = None
    """Weight of each scale in the mean, regardless of their sum; null weights all scales alike."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.scales)) != len(self.scales):
            raise ValueError("scales must be unique")
        if self.scale_weights is not None and len(self.scale_weights) != len(self.scales):
            raise ValueError(
                f"scale_weights has {len(self.scale_weights)} weights for {len(self.scales)} scales; give one for each"
            )
        return self


class MemberConfig(Schema):
    """An experiment whose networks predict in an ensemble."""

    experiment: Name
    """Name of the experiment, which is also its folder below --runs."""
    folds: Annotated[tuple[Fold, ...], Field(min_length=1)] | None = None
    """Folds whose networks predict; null is all folds."""
    stage: Name | None = None
    """Stage whose checkpoints predict; null is the last stage."""
    checkpoints: Literal["best", "top-k", "nth", "last"] = "top-k"
    """Checkpoints of each fold that predict: the best, the top_k best, only the top_k-th best, or that of the last
    epoch."""
    top_k: Count | None = None
    """Maximum number of checkpoints per fold with top-k, the rank of the only one with nth; null is the stage's
    top_k."""
    weight: Weight = 1.0
    """Weight of the member, shared equally by its networks."""
    image_size: Side | None = None
    """Side of the input of the member's networks, in pixels; null is the eval_image_size of its stage, or its
    image_size."""
    average: Literal["predictions", "weights"] = "predictions"
    """predictions: average the predictions of a fold's checkpoints; weights: average their weights into one network."""
    tta: TtaConfig | None = None
    """Test-time augmentation of the member's networks; null is that of the ensemble."""

    @model_validator(mode="after")
    def _each_fold_once(self) -> Self:
        if self.folds is not None and len(set(self.folds)) != len(self.folds):
            raise ValueError("folds must be unique: a repeated fold would count twice")
        return self


class TripletConfig(Schema):
    """A triplet of thresholds set by hand: a film with at least `area` pixels above `top` is positive, and its mask is
    then the pixels above `bottom`."""

    top: Probability
    """Threshold of the pixels that are counted to call a film positive."""
    area: Area
    """Minimum number of label-grid pixels above top of a positive film."""
    bottom: Probability
    """Threshold of the mask of a positive film."""


class EnsembleConfig(Schema):
    """Experiments whose networks predict together."""

    name: Name
    """Name of the ensemble and of its folder below --runs."""
    members: Annotated[tuple[MemberConfig, ...], Field(min_length=1, max_length=1000)]
    """Experiments of the ensemble."""
    tta: TtaConfig = TtaConfig()
    """Test-time augmentation."""
    image_size: Side | None = None
    """Side of the stored maps, in pixels; null is the largest side of the segmenters' inputs, which this key does not
    change."""
    eval_batch: Batch | None = None
    """Number of films per forward pass; null is the smallest eval_batch of the members' stages."""
    amp: Literal["auto", "bf16", "fp16", "float32"] | None = None
    """Autocast type; null is the type that each network was trained with."""
    loader: Annotated[Literal["dali", "torch"] | None, OLD_LOADER_NAME] = None
    """Loader of the films; null is that of the first member."""
    thresholds: TripletConfig | None = None
    """Thresholds of `submit`; null uses those that `tune` found."""
    rule: RuleName | None = None
    """Tuned rule for masks that `submit`, `report` and `average --bundle` use without --rule; null is the triplet."""
    smallest_part: Area = 0
    """Minimum size of a connected component, in label-grid pixels; `submit` removes smaller ones."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.rule is not None and self.thresholds is not None:
            raise ValueError("set thresholds or rule, not both: thresholds are a rule of their own")
        return self


# Schemas of the keys that contain other keys.
NESTED: dict[Any, type[Schema]] = {"members": MemberConfig, "tta": TtaConfig, "thresholds": TripletConfig}


def alone(experiment: Experiment, stage: str | None, top_k: int | None, hflip: bool) -> EnsembleConfig:
    """Return an ensemble of the folds of one experiment."""
    member = MemberConfig(experiment=experiment.name, stage=stage, top_k=top_k)
    return EnsembleConfig(name=experiment.name, members=(member,), tta=TtaConfig(hflip=hflip))


def check_finds_masks(config: Experiment | EnsembleConfig) -> None:
    """Raise InputError for the experiment of a classifier, which finds no masks."""
    if isinstance(config, Experiment) and config.model.is_classifier:
        raise InputError(
            f"experiment {config.name}: arch classifier has no map, and so no masks; make it a member of an ensemble "
            "with a segmenter"
        )


def load_either(path: Path, overrides: tuple[str, ...] = ()) -> Experiment | EnsembleConfig:
    """Load an experiment, or an ensemble if the file has `members`. Raises InputErrors that name file and key."""
    tree = read_tree(path)
    if "members" not in tree:
        return load_config(path, overrides).experiment
    for override in overrides:
        parts, value = parse_override(override)
        put(tree, parts, value)
    warn_of_old_loader(tree.get("loader"), f"{_origin('loader', overrides, path)}: loader")
    try:
        return EnsembleConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        messages = []
        for each in in_order(error):
            key = ".".join(map(str, each["loc"])) or "config"
            message = each["msg"]
            if each["type"] == "extra_forbidden":
                schema = next((NESTED[part] for part in each["loc"][-2::-1] if part in NESTED), EnsembleConfig)
                message = f"unknown key; {fix_for(str(each['loc'][-1]), schema.model_fields)}"
            messages.append(f"{_origin(key, overrides, path)}: {key}: {message}")
        raise InputErrors(messages) from None


def _origin(key: str, overrides: tuple[str, ...], path: Path) -> str:
    """Return the origin of a key: --set or the file."""
    return OVERRIDE if any(override.startswith(f"{key}=") for override in overrides) else str(path)
