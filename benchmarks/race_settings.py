"""The settings of the project's own sides of benchmarks.race, as text, read from the config that they train."""

from typing import Any

import torch

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.loss import TERMS
from pneumo_dist.config.schema import Schema
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.precision import resolve_amp

# The rows of the table of settings, in this order.
NAMES = (
    *("network", "parameters", "image size", "batch", "optimizer", "learning rate", "schedule", "loss"),
    *("augmentation", "films drawn", "length", "precision", "start"),
)


def experiment_settings(experiment: Experiment) -> dict[str, str]:
    """Return the settings of an experiment from random weights; those of several stages are joined."""
    stages = experiment.stages
    return {
        **_network(experiment),
        "image size": _joined([f"{stage.image_size} x {stage.image_size}" for stage in stages]),
        "batch": _joined([str(stage.global_batch) for stage in stages]),
        "optimizer": _joined([_changes(stage.optim, "name", "lr") for stage in stages]),
        "learning rate": _joined([f"{stage.optim.lr:g}" for stage in stages]),
        "schedule": _joined([_changes(stage.schedule, "name") for stage in stages]),
        "loss": _joined([_loss(stage) for stage in stages]),
        "augmentation": _joined([_augmentation(stage) for stage in stages]),
        "films drawn": _joined([_drawn(stage) for stage in stages]),
        "length": _joined([f"{stage.epochs} epochs" for stage in stages]),
        "precision": resolve_amp(experiment.amp, torch.device("cpu")),
    }


def plain_settings(experiment: Experiment) -> dict[str, str]:
    """Return the settings of the plain loop, which takes some of them from the first stage."""
    stage = experiment.stages[0]
    return {
        **_network(experiment),
        "image size": f"{stage.image_size} x {stage.image_size}",
        "batch": str(stage.global_batch),
        "optimizer": "Adam",
        "learning rate": f"{stage.optim.lr:g}",
        "schedule": "constant",
        "loss": _loss(stage),
        "augmentation": "flip, rotation to 10°",
        "films drawn": "each once in an epoch",
        "length": f"{sum(each.epochs for each in experiment.stages)} epochs, and on to the goal",
        "precision": "float32",
    }


def _network(experiment: Experiment) -> dict[str, str]:
    with torch.device("meta"):  # no weights are drawn
        model = build_model(experiment.model, pretrained=False)
    count = sum(weights.numel() for weights in model.parameters())
    widths = experiment.model.decoder_channels
    decoder = "the decoder's default" if widths is None else f"decoder {'-'.join(map(str, widths))}"
    return {
        "network": f"{experiment.model.arch}, {experiment.model.encoder}, {decoder}, norm {experiment.model.norm}",
        "parameters": f"{count / 1e6:.1f} million",
        "start": experiment.model.encoder_weights or "random weights",
    }


def _loss(stage: StageConfig) -> str:
    weights = {name: getattr(stage.loss, name) for name in TERMS}
    terms = " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)
    return f"{terms}, Dice of {stage.loss.dice_films} films" if stage.loss.dice_films != "all" else terms


def _drawn(stage: StageConfig) -> str:
    rate = stage.sample_rate
    return "each once in an epoch" if rate is None else f"{rate:.0%} of an epoch's are positive"


def _augmentation(stage: StageConfig) -> str:
    """Return the augmentations that are drawn at all."""
    found = []
    for name in type(stage.augment).model_fields:
        value = getattr(stage.augment, name)
        if isinstance(value, Schema):
            if getattr(value, "p", 0):
                found.append(f"{name} ({_values(_numbers(value))})")
        elif value and not isinstance(value, str):
            found.append(f"{name} {value:g}")
    return ", ".join(found) or "none"


def _numbers(part: Schema) -> dict[str, Any]:
    return {name: value for name, value in part.model_dump(exclude_none=True).items() if not isinstance(value, str)}


def _changes(part: Schema, name: str, *shown: str) -> str:
    """Return the name of an optimizer or schedule, with its settings that differ from the defaults."""
    changed = part.model_dump(exclude_defaults=True, exclude={name, *shown})
    return " ".join(filter(None, [str(getattr(part, name)), f"({_values(changed)})" if changed else ""]))


def _values(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _joined(values: list[str]) -> str:
    """Return the values of the stages, one if all are equal."""
    return values[0] if len(set(values)) == 1 else ", then ".join(values)
