"""Stages that repeat while their score improves: names of the repetitions, and which one's weights are used."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import checkpoints_of


def best_score(history: Sequence[Mapping[str, Any]]) -> float:
    """Return the best validation score in a stage's history."""
    return max(float(epoch["score"]) for epoch in history)


def repetition_name(stage: str, number: int) -> str:
    """Return the name of a stage's repetition, counted from 1: NAME, NAME-2, NAME-3, …"""
    return stage if number == 1 else f"{stage}-{number}"


def repetitions(stage: StageConfig) -> Iterator[StageConfig]:
    """Yield a stage under the names of its repetitions, without end if it repeats, else once."""
    for number in count(1) if stage.repeat else (1,):
        yield stage.model_copy(update={"name": repetition_name(stage.name, number)})


def best_repetition(stage: StageConfig, fold: Path) -> CheckpointFolder:
    """Return the checkpoints of the repetition that the next stage starts from: the last one that improved.

    `fold` is the fold's folder. Raises InputError if the newest checkpoint of a repetition is damaged: an older one may
    choose another repetition.
    """
    best, score = checkpoints_of(fold, stage.name), -1.0
    for repetition in repetitions(stage) if stage.repeat else ():
        checkpoints = checkpoints_of(fold, repetition.name)
        checkpoints.check_newest()
        if checkpoints.newest() is None:
            break
        history = checkpoints.header()["history"]
        if not history or best_score(history) <= score:
            break
        best, score = checkpoints, best_score(history)
    return best
