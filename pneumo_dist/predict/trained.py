"""The settings that a fold was trained with, from its config.yaml. Predictions use these, not the present config."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.config.record import differing_keys
from pneumo_dist.config.stage import StageConfig
from shards.errors import InputError

# How films are read: free to differ from the training, with a warning for another loader.
_READING = ("loader", "threads", "prefetch", "cache_dir", "channels_last")
# Keys of a stage about its checkpoints and the memory of predictions, not about what the network learned.
_FREE = ("top_k", "eval_batch", "save_every", "save_minutes")


def trained_experiment(
    folder: Path, stage: str | None, current: Experiment | None = None
) -> tuple[Experiment, StageConfig]:
    """Return the experiment and the stage that a fold was trained with.

    Warns if the user's config names another loader.

    Args:
        stage: Name of the stage; by default the last one, of the user's config if there is one.
        current: The experiment of the user's config. Only its way to read films, and the stage's checkpoint and memory
            settings, are used.

    Raises:
        InputError: Network or input differ between the training and the user's config; names the keys.
    """
    path = folder / "config.yaml"
    trained = load_config(path, is_record=True).experiment
    name = stage or (current or trained).stages[-1].name
    trained_stage = trained.stage(name)
    if current is None:
        return trained, trained_stage
    current_stage = current.stage(name)
    different = differing_keys(_input_of(trained, trained_stage), _input_of(current, current_stage))
    if different:
        raise InputError(
            f"{path}: was trained with another {', '.join(different)} than the given config has; predict with "
            f"--config {path}"
        )
    if current.data.loader != trained.data.loader:
        warnings.warn(
            f"{path}: was trained with data.loader {trained.data.loader}; films are read with {current.data.loader}, "
            "as the given config says",
            stacklevel=2,
        )
    data = trained.data.model_copy(update={name: getattr(current.data, name) for name in _READING})
    free = {name: getattr(current_stage, name) for name in _FREE}
    return trained.model_copy(update={"data": data}), trained_stage.model_copy(update=free)


def check_trained_alike(experiments: Sequence[tuple[Path, Experiment]]) -> None:
    """Raise InputError, naming the keys, if the folds of a member were trained with different settings."""
    first, expected = experiments[0]
    for folder, experiment in experiments[1:]:
        different = differing_keys(_learned(expected), _learned(experiment))
        if different:
            raise InputError(
                f"{folder}: was trained with another {', '.join(different)} than {first}; folds of different settings "
                "are one ensemble only where it lists them as members, each with its folds"
            )


def _input_of(experiment: Experiment, stage: StageConfig) -> dict[str, Any]:
    """Return the settings of the network and of its input."""
    data = experiment.data.model_dump(mode="json", exclude=set(_READING))
    sides = {name: getattr(stage, name) for name in ("image_size", "eval_image_size")}
    return {"model": experiment.model.model_dump(mode="json"), "data": data, **sides}


def _learned(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that decide the weights of an experiment, apart from rounding.

    Each fold may start from its own file of weights.
    """
    content = experiment.model_dump(
        mode="json", exclude={"runtime": True, "data": set(_READING), "init": {"file", "sha256"}}
    )
    stages = content.pop("stages")
    return {
        **content,
        "stages": {each["name"]: {key: each[key] for key in each if key not in _FREE} for each in stages},
        "order": [each["name"] for each in stages],
    }
