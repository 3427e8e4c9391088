"""What a fold was trained with, as its config.yaml tells it: its predictions take that, whatever a config says now."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumo_dist.config.experiment import Experiment, StageConfig
from pneumo_dist.config.load import load_config
from pneumo_dist.config.record import differing_keys
from shards.errors import InputError

# How films reach the network: any way may be taken, and its loader is told where it is another.
_WAYS = ("loader", "threads", "prefetch", "cache_dir", "channels_last")
# Of a stage: what its checkpoints are and what its predictions take in memory, not what the network learned.
_FREE = ("top_k", "eval_batch", "save_every", "save_minutes")


def trained_experiment(
    folder: Path, stage: str | None, own: Experiment | None = None
) -> tuple[Experiment, StageConfig]:
    """Return the experiment and the stage that a fold's folder was trained with.

    Without a name it is the last stage, of the given config (`own`) where there is one. Of the given config, only the
    way films are read and what a stage keeps and holds are taken. Warns where its loader is another, and raises
    InputError, naming the keys, where its network or what this takes is.
    """
    path = folder / "config.yaml"
    trained = load_config(path, is_record=True).experiment
    name = stage or (own or trained).stages[-1].name
    found = trained.stage(name)
    if own is None:
        return trained, found
    wanted = own.stage(name)
    different = differing_keys(_input_of(trained, found), _input_of(own, wanted))
    if different:
        raise InputError(
            f"{path}: was trained with another {', '.join(different)} than the given config asks for; predict with "
            f"--config {path}"
        )
    if own.data.loader != trained.data.loader:
        warnings.warn(
            f"{path}: was trained with data.loader {trained.data.loader}; films are read with {own.data.loader}, as "
            "the given config asks for",
            stacklevel=2,
        )
    data = trained.data.model_copy(update={name: getattr(own.data, name) for name in _WAYS})
    kept = {name: getattr(wanted, name) for name in _FREE}
    return trained.model_copy(update={"data": data}), found.model_copy(update=kept)


def check_trained_alike(experiments: Sequence[tuple[Path, Experiment]]) -> None:
    """Raise InputError, naming the keys, where the folds of one member were trained with different settings."""
    first, expected = experiments[0]
    for folder, experiment in experiments[1:]:
        different = differing_keys(_learned(expected), _learned(experiment))
        if different:
            raise InputError(
                f"{folder}: was trained with another {', '.join(different)} than {first}; folds of different settings "
                "are one ensemble only where it lists them as members, each with its folds"
            )


def _input_of(experiment: Experiment, stage: StageConfig) -> dict[str, Any]:
    """Return the network and what it takes."""
    data = experiment.data.model_dump(mode="json", exclude=set(_WAYS))
    return {"model": experiment.model.model_dump(mode="json"), "data": data, "image_size": stage.image_size}


def _learned(experiment: Experiment) -> dict[str, Any]:
    """Return what decides the weights of an experiment, rounding left out."""
    content = experiment.model_dump(mode="json", exclude={"runtime": True, "data": set(_WAYS)})
    stages = content.pop("stages")
    return {
        **content,
        "stages": {each["name"]: {key: each[key] for key in each if key not in _FREE} for each in stages},
        "order": [each["name"] for each in stages],
    }
