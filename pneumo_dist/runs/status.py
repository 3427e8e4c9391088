"""Status of all runs below a folder, from their heartbeats and logs. No checkpoint is loaded, nothing is locked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic

from pneumo_dist.runs.heartbeat import FAILED, LOST_SECONDS, RUNNING, read_heartbeat
from pneumo_dist.runs.logs import METRICS, MOST_LOG, LineModel
from shards.console import printable
from shards.errors import InputError
from shards.stored import read_limited

# Longer than it takes to compile a network or to validate a batch.
STALLED_SECONDS = 300.0
STALLED, UNKNOWN = "stalled", "unknown"


@dataclass(frozen=True)
class FoldStatus:
    """Status of one fold; fields are None if they are not known.

    Attributes:
        epoch: Current epoch, counted from 1.
        epochs: Number of epochs of the stage.
        step: Optimizer steps of the stage so far.
        score: Best score of the stage so far.
        heard: Seconds since the last heartbeat.
        job_id: SLURM job.
        idle: Seconds without progress of a running fold.
    """

    experiment: str
    fold: int
    state: str
    stage: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    score: float | None = None
    images_per_s: float | None = None
    heard: float | None = None
    job_id: str | None = None
    idle: float | None = None


def read_status(runs: Path, now: float) -> list[FoldStatus]:
    """Return the status of all folds below a folder of runs, sorted by experiment and fold.

    `now` is a Unix timestamp. Raises InputError if the folder does not exist.
    """
    if not runs.is_dir():
        raise InputError(f"{runs}: no such folder; give the --runs of 'train'")
    statuses = []
    for folder in runs.glob("*/fold*"):
        match = re.fullmatch(r"fold(\d+)", folder.name)
        if match and folder.is_dir():
            statuses.append(_fold_status(folder, int(match[1]), now))
    return sorted(statuses, key=lambda each: (each.experiment, each.fold))


def _fold_status(folder: Path, fold: int, now: float) -> FoldStatus:
    experiment = folder.parent.name
    beat = read_heartbeat(folder)
    if beat is None:
        return FoldStatus(experiment, fold, UNKNOWN)
    heard = max(now - float(beat.get("time", 0)), 0.0)
    state = str(beat.get("state", UNKNOWN))
    if state == RUNNING and heard > LOST_SECONDS:
        state = FAILED
    idle = float(beat.get("idle") or 0.0) + heard if state == RUNNING else None
    if idle is not None and idle > STALLED_SECONDS:
        state = STALLED
    stage = beat.get("stage")
    best, speed = _last_epoch(folder / stage) if stage else (None, None)
    epoch = beat.get("epoch")
    return FoldStatus(
        experiment,
        fold,
        state,
        stage,
        None if epoch is None else epoch + 1,
        beat.get("epochs"),
        beat.get("step"),
        best,
        speed,
        heard,
        beat.get("job_id"),
        idle,
    )


def _last_epoch(stage: Path) -> tuple[float | None, float | None]:
    """Return the best score of a stage so far and the speed of its last validated epoch; None for what is not known."""
    try:
        lines = read_limited(stage / METRICS, MOST_LOG, "none").splitlines()
    except (OSError, InputError):
        return None, None
    best, speed = None, None
    for line in lines:
        try:
            epoch = LineModel.model_validate_json(line)
        except pydantic.ValidationError:
            continue  # a line that is still being written, or a damaged one
        if epoch.score is not None:
            best = epoch.score if best is None else max(best, epoch.score)
            speed = epoch.images_per_s
    return best, speed


def table(folds: Sequence[FoldStatus]) -> list[str]:
    """Return the lines of a table, the header first."""
    head = ("experiment", "fold", "state", "stage", "epoch", "step", "score", "images/s", "heartbeat", "job")
    rows = [head, *(tuple(map(printable, _cells(each))) for each in folds)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(fold: FoldStatus) -> tuple[str, ...]:
    return (
        fold.experiment,
        str(fold.fold),
        f"{fold.state} {_duration(fold.idle)}" if fold.state == STALLED and fold.idle is not None else fold.state,
        fold.stage or "-",
        "-" if fold.epoch is None else f"{fold.epoch}/{fold.epochs}",
        "-" if fold.step is None else str(fold.step),
        "-" if fold.score is None else f"{fold.score:.4f}",
        "-" if fold.images_per_s is None else f"{fold.images_per_s:.1f}",
        "-" if fold.heard is None else f"{_duration(fold.heard)} ago",
        fold.job_id or "-",
    )


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
