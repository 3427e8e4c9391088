"""Curves of training: scores of the validation films over time, read from a run's logs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import step_times
from pneumo_dist.train.monitor import TAGS


class Point(NamedTuple):
    """Scores after some seconds of training: the Dice of positive films, and the mean Dice of all."""

    seconds: float
    positive_dice: float
    dice: float


def curve_of(stages: Sequence[Path]) -> tuple[Point, ...]:
    """Return the validated epochs of a run's stages, in seconds from the end of its first step."""
    start = min(step_times(stage)[0] for stage in stages)
    curve: list[Point] = []
    for stage in stages:
        lines = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
        validated = [line for line in lines if "positive_dice" in line]
        # A run that was killed may have written one of the two only.
        for end, line in zip(step_times(stage, TAGS["positive_dice"]), validated, strict=False):
            curve.append(Point(end - start, line["positive_dice"], line["score"]))
    return tuple(curve)


def seconds_to(curve: Sequence[Point], goal: float, cap: float = math.inf) -> float:
    """Return when a curve first reaches the goal, infinity if it does not within the cap."""
    return next((at.seconds for at in curve if at.positive_dice >= goal and at.seconds <= cap), math.inf)
