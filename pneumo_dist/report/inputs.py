"""Inputs of a report: thresholds, training logs, film counts and versions."""

import math
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_dist import __version__
from pneumo_dist.config.load import read_tree
from pneumo_dist.maps.store import Predictions
from pneumo_dist.runs.logs import METRICS, EpochLineModel, read_epochs
from pneumo_dist.scoring.arrays import Flags
from pneumo_dist.scoring.histograms import Histograms
from pneumo_dist.thresholds.file import read_thresholds
from pneumo_dist.thresholds.rules import THRESHOLDS, ThresholdsFile
from pneumo_dist.thresholds.tune import film_measures, tune
from shards.dataset.check import LABELLED_SPLITS, SPLITS
from shards.dataset.table import Shards

Epochs = list[dict[str, Any]]
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "numpy", "scikit-learn", "scipy", "webdataset")


@dataclass(frozen=True)
class RunFigures:
    """Median training speed over epochs in films/s, and the largest resident size of a rank in MiB."""

    images_per_s: float
    peak_memory_mb: float


@dataclass(frozen=True)
class SplitCount:
    """Number of films in a split. `positives` is None without labels; a group is a patient with near-duplicates."""

    split: str
    films: int
    positives: int | None
    groups: int


def current_thresholds(
    predictions: Predictions, on_film: Callable[[], None] | None = None
) -> tuple[Histograms | None, ThresholdsFile, str | None]:
    """Read the thresholds that `tune` wrote for these predictions.

    If thresholds.json is missing or belongs to other predictions, every film is read and thresholds are tuned here for
    mean Dice.

    Returns:
        The histograms, int64 (n, 2, 256), if films were read; the thresholds; and why they were tuned here, or None.

    Raises:
        InputError: A film has no label, or thresholds.json is damaged.
    """
    path = predictions.folder.parent / THRESHOLDS
    thresholds = read_thresholds(path) if path.exists() else None
    if thresholds is not None and thresholds.digest == predictions.digest:
        return None, thresholds, None
    histograms, components = film_measures(predictions, None, 0.5, on_film)
    result = tune(predictions, histograms, None, components, 0.5)
    return histograms, result.thresholds, f"{THRESHOLDS} is {'missing' if thresholds is None else 'out of date'}"


def experiments_of(predictions: Predictions, runs: Path, name: str) -> list[str]:
    """Return the experiments whose networks predicted, in the order of the ensemble; the run itself if none is named.

    The manifest names networks as `experiment/fold0/step-….pt`.
    """
    named = [str(network["name"]).split("/")[0] for network in predictions.manifest.get("parts", [])]
    experiments = [each for each in dict.fromkeys(named) if each not in ("", ".", "..") and (runs / each).is_dir()]
    return experiments or [name]


def read_history(run: Path) -> dict[str, dict[str, Epochs]]:
    """Return the validated epochs of a run by stage and by fold, with stages in the order of the config.

    Raises InputError for a damaged log.
    """
    history: dict[str, dict[str, Epochs]] = {}
    for path in sorted(run.glob(f"fold*/*/{METRICS}")):
        if re.fullmatch("fold[0-9]+", path.parent.parent.name) is None:
            continue  # a plot would take some names for mathematics
        epochs = read_epochs(path, model=EpochLineModel)
        if epochs:
            history.setdefault(path.parent.name, {})[path.parent.parent.name] = epochs
    order = _stage_names(run)

    def position(stage: str) -> tuple[int, int, str]:
        # The repetitions of a stage are called NAME-2, NAME-3, …
        base, _, number = stage.rpartition("-")
        if stage not in order and base in order and number.isdigit():
            return order.index(base), int(number), stage
        return order.index(stage) if stage in order else len(order), 1, stage

    return {stage: history[stage] for stage in sorted(history, key=position)}


def _stage_names(run: Path) -> list[str]:
    for path in sorted(run.glob("fold*/config.yaml")):
        stages = read_tree(path, is_record=True).get("stages")
        named = stages if isinstance(stages, list) else []
        return [str(stage["name"]) for stage in named if isinstance(stage, dict) and "name" in stage]
    return []


def run_figures(histories: Sequence[dict[str, dict[str, Epochs]]]) -> RunFigures:
    """Return training speed and memory over all folds and stages; nan if nothing was logged."""
    epochs = [line for history in histories for stage in history.values() for fold in stage.values() for line in fold]
    # An epoch that was resumed after its last step has no speed.
    lines = [line for line in epochs if line["images_per_s"] > 0]
    if not lines:
        return RunFigures(math.nan, math.nan)
    speeds = [line["images_per_s"] for line in lines]
    return RunFigures(float(np.median(speeds)), max(line["peak_memory_mb"] for line in lines))


def split_counts(shards: Shards) -> list[SplitCount]:
    """Return the number of films in each split of the sample table."""
    splits, groups, positive = (shards.column(name) for name in ("split", "group", "has_mask"))
    counts = []
    for split in SPLITS:
        films: Flags = np.asarray(splits == split)
        if films.any():
            positives = None if split not in LABELLED_SPLITS else int(positive[films].astype(bool).sum())
            counts.append(SplitCount(split, int(films.sum()), positives, len(set(groups[films].tolist()))))
    return counts


def environment(predictions: Predictions) -> list[tuple[str, str]]:
    """Return the names and values of the versions and digests behind the figures."""
    packages = [(name, _version(name)) for name in PACKAGES]
    return [
        ("pneumo_dist", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, version) for name, version in packages if version),
        ("SHA-256 of the predictions", predictions.digest),
        ("SHA-256 of the dataset", str(predictions.manifest.get("dataset", "not recorded"))),
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
