"""The results of benchmarks.race: curves of exact Dice over training time, and one file for each side and seed."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.curves import Point, seconds_to
from benchmarks.race_clock import load_maps
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.histograms import Histograms, film_histograms
from pneumo_dist.scoring.masks import label_map
from pneumo_dist.scoring.triplet import best_triplet
from shards.dataset.table import Shards
from shards.files import write_json


@dataclass(frozen=True)
class Result:
    """A side with one seed.

    Attributes:
        side: Its name.
        seed: Of weights, order and augmentation.
        curve: Scores of the validation films, by time.
        films_per_second: Films trained on in a second, of the time that counts.
        settings: Its settings, by name, as text.
        versions: Those of its packages.
        extra: Further figures, by name.
    """

    side: str
    seed: int
    curve: tuple[Point, ...]
    films_per_second: float
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Point:
        return max(self.curve, key=lambda point: point.positive_dice)

    @property
    def seconds(self) -> float:
        return self.curve[-1].seconds


def best_score(histograms: Histograms) -> tuple[float, float]:
    """Return the exact Dice of the positive films and of all, at the triplet with the best mean Dice of all films."""
    score = triplet_counts(histograms, best_triplet(histograms)[0]).score()
    return score.positive_dice, score.dice


def point_of(path: Path, shards: Shards) -> Point:
    """Return the scores of the maps that a side stored. They are compared on the label grid, as those of a run are."""
    seconds, keys, maps = load_maps(path)
    rows = {key: row for row, key in enumerate(shards.column("key").tolist())}
    films = [
        film_histograms(label_map(p8, shards.grid(rows[key])), shards.label(rows[key]))
        for key, p8 in zip(keys, maps, strict=True)
    ]
    return Point(seconds, *best_score(np.stack(films)))


def median_to(results: Sequence[Result], goal: float, cap: float) -> float:
    """Return the median over seeds of the seconds to the goal, infinity if most of them do not reach it."""
    return statistics.median(seconds_to(result.curve, goal, cap) for result in results)


def save(path: Path, result: Result, goal: float, cap: float) -> None:
    """Write a result, with the seconds to the goal, null without them."""
    seconds = seconds_to(result.curve, goal, cap)
    reached = {"goal": goal, "cap": cap, "seconds_to_goal": None if math.isinf(seconds) else seconds}
    write_json(path, {**asdict(result), **reached})


def load(path: Path) -> Result:
    """Read a result. The goal and the cap of the file are for its readers."""
    content = json.loads(path.read_text())
    for name in ("goal", "cap", "seconds_to_goal"):
        del content[name]
    return Result(**{**content, "curve": tuple(Point(*each) for each in content["curve"])})


def results_of(work: Path, side: str) -> list[Result]:
    """Return the finished results of a side, by seed."""
    paths = (work / "results").glob(f"{side}-*.json")
    return sorted((load(path) for path in paths), key=lambda result: result.seed)
