"""Stages that are repeated while they gain: the names of the repetitions, and whose weights go on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumo_dist.config.experiment import StageConfig
from pneumo_dist.runs.checkpoint import newest_good, read_trained

State = dict[str, Any]


def best_score(history: Sequence[State]) -> float:
    """Return the best validation score of a stage's epochs."""
    return max(float(record["score"]) for record in history)


def next_name(stage: str, repetition: str) -> str:
    """Return the name of the repetition after this one: NAME, NAME-2, NAME-3, …"""
    number = 1 if repetition == stage else int(repetition.removeprefix(f"{stage}-"))
    return f"{stage}-{number + 1}"


def best_repetition(stage: StageConfig, folder: Path) -> str:
    """Return the name of the repetition whose weights go on: the last that gained. `folder` is the fold's."""
    name, best = stage.name, -1.0
    repetition = stage.name
    while stage.repeat is not None:
        checkpoints = folder / repetition / "checkpoints"
        newest = newest_good(checkpoints) if checkpoints.is_dir() else None
        history = read_trained(newest.path)["history"] if newest else []
        if not history or best_score(history) <= best:
            break
        name, best, repetition = repetition, best_score(history), next_name(stage.name, repetition)
    return name
