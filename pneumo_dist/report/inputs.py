"""Inputs of a report: evaluated predictions, training logs, film counts and versions."""

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
from pneumo_dist.predict.store import Predictions, check_gate
from pneumo_dist.report.measures import image_scores, touched_lesions
from pneumo_dist.runs.logs import METRICS, EpochLineModel, read_epochs
from pneumo_dist.scoring.arrays import Counts, Flags, Names
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.histograms import Histograms
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.scoring.threads import in_order
from pneumo_dist.thresholds.file import read_thresholds
from pneumo_dist.thresholds.rules import THRESHOLDS, ThresholdsFile
from pneumo_dist.thresholds.tune import film_measures, prediction_histograms, tune
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.arrays import Floats
from shards.dataset.table import Shards
from shards.errors import InputError

Epochs = list[dict[str, Any]]
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "numpy", "scikit-learn", "scipy", "webdataset")


@dataclass(frozen=True)
class EvaluatedFilms:
    """Labelled predictions under a rule. Arrays are in the order of the predictions.

    Attributes:
        predictions: The predictions.
        histograms: Their histograms, int64 (n, 2, 256).
        rule: The rule for masks.
        counts: Pixel counts under the rule.
        scores: Image scores, float64 (n,).
        lesions: Number of 8-connected components of the labels.
        lesion_sensitivity: Share of these lesions that a mask touches by at least one pixel.
    """

    predictions: Predictions
    histograms: Histograms
    rule: Rule
    counts: PixelCounts
    scores: Floats
    lesions: int
    lesion_sensitivity: Estimate

    @property
    def folds(self) -> Counts:
        return self.predictions.folds

    @property
    def groups(self) -> Names:
        return self.predictions.groups

    def __len__(self) -> int:
        return len(self.counts)


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
) -> tuple[Histograms, ThresholdsFile, str | None]:
    """Read every out-of-fold film once, and the thresholds that `tune` wrote for these predictions.

    If thresholds.json is missing or belongs to other predictions, thresholds are tuned here for mean Dice.

    Returns:
        The histograms, int64 (n, 2, 256); the thresholds; and why they were tuned here, or None if they were not.

    Raises:
        InputError: A film has no label, or thresholds.json is damaged.
    """
    path = predictions.folder.parent / THRESHOLDS
    thresholds = read_thresholds(path) if path.exists() else None
    if thresholds is not None and thresholds.digest == predictions.digest:
        return prediction_histograms(predictions, None, on_film), thresholds, None
    histograms, components = film_measures(predictions, None, 0.5, on_film)
    result = tune(predictions, histograms, None, components, 0.5)
    return histograms, result.thresholds, f"{THRESHOLDS} is {'missing' if thresholds is None else 'out of date'}"


def evaluate(
    predictions: Predictions, histograms: Histograms, rule: Rule, threads: int | None = None
) -> EvaluatedFilms:
    """Evaluate labelled predictions under a rule.

    Masks are only made for films with lesions to count, and for films that may lose small components. The result does
    not depend on `threads`, by default one for each CPU.

    Raises:
        InputError: The rule has a gate and the predictions have no class probabilities.
    """
    counts = triplet_counts(histograms, rule.triplet)
    check_gate(predictions, rule)
    if rule.gate > 0:
        counts = counts.emptied(np.array([row["class_probability"] for row in predictions.rows]) <= rule.gate)
    needs_mask = counts.positive | (counts.called if rule.smallest_part > 1 else False)
    predicted, hits = counts.predicted.copy(), counts.hits.copy()
    touched: list[Flags] = [np.zeros(0, np.bool_)]
    owners: list[Names] = [np.zeros(0, np.str_)]
    films = np.flatnonzero(needs_mask).tolist()
    groups = predictions.groups

    def masked(index: int) -> tuple[int, int, Flags]:
        return _masked(predictions, index, rule)

    for index, (pixels, right, lesions) in zip(films, in_order(masked, films, threads), strict=True):
        predicted[index], hits[index] = pixels, right
        touched.append(lesions)
        owners.append(np.repeat(groups[index], len(lesions)))
    every = np.concatenate(touched)
    return EvaluatedFilms(
        predictions=predictions,
        histograms=histograms,
        rule=rule,
        counts=PixelCounts(predicted, hits, counts.truth),
        scores=image_scores(histograms, rule.triplet.area),
        lesions=len(every),
        lesion_sensitivity=estimate(every.astype(np.float64), np.concatenate(owners)),
    )


def _masked(predictions: Predictions, index: int, rule: Rule) -> tuple[int, int, Flags]:
    """Return the pixels of a film's mask, those of them on its label, and whether the mask touches each lesion."""
    truth, film = predictions.label(index), label_map(predictions.p8(index), predictions.grid(index))
    mask = apply_rule(film, rule, predictions.rows[index]["class_probability"])
    return int(np.count_nonzero(mask)), int(np.count_nonzero(mask & truth)), touched_lesions(truth, mask)


def shard_rows(shards: Shards, predictions: Predictions) -> Counts:
    """Return the row of each predicted film in the shards, int64 (n,). Raises InputError if a film is missing."""
    row_of = {str(key): number for number, key in enumerate(shards.column("key"))}
    missing = [row["key"] for row in predictions.rows if row["key"] not in row_of]
    if missing:
        raise InputError(
            f"{shards.folder}: has no film {missing[0]} of {predictions.folder} ({len(missing)} missing in all); give "
            "the shards that were predicted"
        )
    return np.array([row_of[row["key"]] for row in predictions.rows], np.int64)


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
    for split in ("train", "always_train", "holdout", "test"):
        films: Flags = np.asarray(splits == split)
        if films.any():
            positives = None if split == "test" else int(positive[films].astype(bool).sum())
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
