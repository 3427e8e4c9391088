"""What a report reads: scored predictions under a rule, the logs of training, counts and versions."""

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_dist import __version__
from pneumo_dist.config.load import read_tree
from pneumo_dist.predict.store import Predictions, check_gate
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.report.measures import estimate, image_scores, touched_parts
from pneumo_dist.runs.logs import METRICS, EpochLineModel, read_epochs
from pneumo_dist.scoring.arrays import Counts, Flags, Floats, Names
from pneumo_dist.scoring.counts import PixelCounts, triplet_counts
from pneumo_dist.scoring.histograms import Histograms
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.thresholds.file import THRESHOLDS, ThresholdsFile, read_rules, rules_of
from pneumo_dist.thresholds.tune import Estimate, film_measures, prediction_histograms, tune
from shards.dataset.table import Shards
from shards.errors import InputError

Epochs = list[dict[str, Any]]
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "numpy", "scikit-learn", "scipy", "webdataset")
ALONE = Ranks.alone()


@dataclass(frozen=True)
class FilmHistograms:
    """Labelled predictions and their histograms, int64 (n, 2, 256), in the order of their table."""

    predictions: Predictions
    histograms: Histograms


@dataclass(frozen=True)
class EvaluatedFilms:
    """Labelled predictions under a rule, in the order of their table.

    `scores` float64 (n,) are the image scores, `lesions` counts the labels' 8-connected parts, `lesion_sensitivity` is
    the share of these that a mask touches by a pixel.
    """

    predictions: Predictions
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
    """What the folds' logs say: median training speed over epochs, films/s; largest resident size of a rank, MiB."""

    images_per_s: float
    peak_memory_mb: float


@dataclass(frozen=True)
class SplitCount:
    """Films of a split; `groups` counts patients joined with near-duplicates, and None is for films without labels."""

    split: str
    films: int
    positives: int | None
    groups: int


def score_films(predictions: Predictions, on_film: Callable[[], None] | None = None) -> FilmHistograms:
    """Look at every film once, in this process. Raises InputError where one has no label."""
    return FilmHistograms(predictions, prediction_histograms(predictions, ALONE, on_film))


def score_with_rules(
    predictions: Predictions, on_film: Callable[[], None] | None = None
) -> tuple[FilmHistograms, ThresholdsFile, str | None]:
    """Look at every out-of-fold film once; return also the rules that `tune` found for these predictions.

    Rules of other predictions, or none, are tuned anew for mean Dice: the text says why, and is None where they were
    not. Raises InputError where a film has no label and where thresholds.json is damaged.
    """
    path = predictions.folder.parent / THRESHOLDS
    found = read_rules(path) if path.exists() else None
    if found is not None and found.digest == predictions.digest:
        return score_films(predictions, on_film), found, None
    histograms, parts = film_measures(predictions, ALONE, 0.5, on_film)
    tuned = tune(predictions, histograms, None, parts, 0.5)
    reason = "missing" if found is None else "out of date"
    return FilmHistograms(predictions, histograms), rules_of(tuned, predictions, path), f"{THRESHOLDS} is {reason}"


def judge(scored: FilmHistograms, rule: Rule) -> EvaluatedFilms:
    """Return what a rule makes of the films.

    A second look, at the masks themselves, is taken of films with lesions to count, and where small parts go. Raises
    InputError for a gate where the networks gave no class probability.
    """
    predictions, found = scored.predictions, triplet_counts(scored.histograms, rule.triplet)
    check_gate(predictions, rule)
    if rule.gate > 0:
        found = found.emptied(np.array([row["class_probability"] for row in predictions.rows]) <= rule.gate)
    looked = found.positive | (found.called if rule.smallest_part > 1 else False)
    predicted, hits = found.predicted.copy(), found.hits.copy()
    touched: list[Flags] = [np.zeros(0, np.bool_)]
    owners: list[Names] = [np.zeros(0, np.str_)]
    for index in np.flatnonzero(looked).tolist():
        row, grid = predictions.rows[index], predictions.grid(index)
        truth = predictions.label(index)
        mask = apply_rule(label_map(predictions.p8(index), grid), rule, row["class_probability"])
        predicted[index], hits[index] = np.count_nonzero(mask), np.count_nonzero(mask & truth)
        touched.append(touched_parts(truth, mask))
        owners.append(np.repeat(predictions.groups[index], len(touched[-1])))
    lesions = np.concatenate(touched)
    return EvaluatedFilms(
        predictions=predictions,
        rule=rule,
        counts=PixelCounts(predicted, hits, found.truth),
        scores=image_scores(scored.histograms, rule.triplet.area),
        lesions=len(lesions),
        lesion_sensitivity=estimate(lesions.astype(np.float64), np.concatenate(owners)),
    )


def shard_rows(shards: Shards, predictions: Predictions) -> Counts:
    """Return each film's row in the shards, int64 (n,). Raises InputError where they have not got it."""
    row_of = {str(key): number for number, key in enumerate(shards.column("key"))}
    missing = [row["key"] for row in predictions.rows if row["key"] not in row_of]
    if missing:
        raise InputError(
            f"{shards.folder}: has no film {missing[0]} of {predictions.folder} ({len(missing)} missing in all); give "
            "the shards that were predicted"
        )
    return np.array([row_of[row["key"]] for row in predictions.rows], np.int64)


def experiments_of(predictions: Predictions, runs: Path, name: str) -> list[str]:
    """Return the experiments that predicted, in the order of the ensemble's parts; the run itself where none is named.

    Parts are named `experiment/fold0/step-….pt`.
    """
    named = [str(part["name"]).split("/")[0] for part in predictions.manifest.get("parts", [])]
    found = [each for each in dict.fromkeys(named) if each not in ("", ".", "..") and (runs / each).is_dir()]
    return found or [name]


def read_history(run: Path) -> dict[str, dict[str, Epochs]]:
    """Return stage -> fold -> its validated epochs, stages in the order of the config.

    Raises InputError for a damaged log.
    """
    found: dict[str, dict[str, Epochs]] = {}
    for path in sorted(run.glob(f"fold*/*/{METRICS}")):
        epochs = read_epochs(path, model=EpochLineModel)
        if epochs:
            found.setdefault(path.parent.name, {})[path.parent.parent.name] = epochs
    order = _stage_names(run)

    def place(stage: str) -> tuple[int, int, str]:
        # A stage that is repeated goes on as NAME-2, NAME-3, …
        base, _, number = stage.rpartition("-")
        if stage not in order and base in order and number.isdigit():
            return order.index(base), int(number), stage
        return order.index(stage) if stage in order else len(order), 1, stage

    return {stage: found[stage] for stage in sorted(found, key=place)}


def _stage_names(run: Path) -> list[str]:
    for path in sorted(run.glob("fold*/config.yaml")):
        stages = read_tree(path).get("stages")
        named = stages if isinstance(stages, list) else []
        return [str(stage["name"]) for stage in named if isinstance(stage, dict) and "name" in stage]
    return []


def run_figures(histories: Sequence[dict[str, dict[str, Epochs]]]) -> RunFigures:
    """Return speed and memory over all folds and stages; nan where nothing was logged."""
    epochs = [line for history in histories for stage in history.values() for fold in stage.values() for line in fold]
    # An epoch that was resumed after its last step has no speed.
    lines = [line for line in epochs if line["images_per_s"] > 0]
    if not lines:
        return RunFigures(math.nan, math.nan)
    speeds = [line["images_per_s"] for line in lines]
    return RunFigures(float(np.median(speeds)), max(line["peak_memory_mb"] for line in lines))


def split_counts(shards: Shards) -> list[SplitCount]:
    """Return the films of each split that the table has."""
    splits, groups, positive = (shards.column(name) for name in ("split", "group", "has_mask"))
    counts = []
    for split in ("train", "always_train", "holdout", "test"):
        films: Flags = np.asarray(splits == split)
        if films.any():
            positives = None if split == "test" else int(positive[films].astype(bool).sum())
            counts.append(SplitCount(split, int(films.sum()), positives, len(set(groups[films].tolist()))))
    return counts


def environment(predictions: Predictions) -> list[tuple[str, str]]:
    """Return names and values of what the figures were made with."""
    packages = [(name, _version(name)) for name in PACKAGES]
    return [
        ("pneumo_dist", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, version) for name, version in packages if version),
        ("SHA-256 of the predictions", predictions.digest),
        ("SHA-256 of the dataset", str(predictions.manifest.get("dataset", "not noted"))),
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
