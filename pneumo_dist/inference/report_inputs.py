"""What a report reads: scored predictions, their thresholds, the logs of training, counts and versions."""

import datetime
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from pneumo_dist import __version__
from pneumo_dist.distributed import Ranks
from pneumo_dist.inference.evaluate import cross_tuned
from pneumo_dist.inference.measures import Counts, Floats, Names, Truths, estimate, touched_parts
from pneumo_dist.inference.objective import Objective
from pneumo_dist.inference.postprocess import Rule, apply_rule, label_map
from pneumo_dist.inference.store import MANIFEST, Predictions
from pneumo_dist.inference.thresholds import THRESHOLDS, read_scores
from pneumo_dist.inference.tune import Estimate, prediction_histograms
from pneumo_dist.metrics import Histograms, Triplet
from pneumo_dist.monitor import METRICS, read_epochs
from shards import rle
from shards.errors import InputError
from shards.table import Shards

Epochs = list[dict[str, Any]]
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "numpy", "scikit-learn", "scipy", "webdataset")


@dataclass(frozen=True)
class Scored:
    """Labelled predictions and their histograms, int64 (n, 2, 256), in the order of their table."""

    predictions: Predictions
    histograms: Histograms

    @property
    def folds(self) -> Counts:
        return self.predictions.folds

    @property
    def groups(self) -> Names:
        return self.predictions.groups

    @cached_property
    def positive(self) -> Truths:
        """Whether each film's label has any pixel."""
        return np.asarray(self.histograms[:, 1].sum(-1) > 0)


@dataclass(frozen=True)
class Thresholds:
    """A triplet, what it was tuned for and where it comes from.

    `unseen` is the mean Dice with thresholds of the other folds, None for films of one fold.
    """

    objective: Objective
    triplet: Triplet
    source: str
    unseen: Estimate | None


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


def open_predictions(folder: Path) -> Predictions:
    """Open predictions with at least one film. Raises InputError where there are none."""
    predictions = Predictions(folder)
    if not len(predictions):
        raise InputError(f"{folder}: holds no films; predict again with shards that have some")
    return predictions


def score_films(predictions: Predictions, on_film: Callable[[], None] | None = None) -> Scored:
    """Look at every film once, in this process. Raises InputError where one has no label."""
    return Scored(predictions, prediction_histograms(predictions, Ranks(0, 1, 0, torch.device("cpu")), on_film))


def thresholds_of(scored: Scored) -> Thresholds:
    """Return the thresholds that `tune` found for these out-of-fold predictions; those of other ones are tuned anew.

    Raises InputError where thresholds.json is damaged.
    """
    path = scored.predictions.folder.parent / THRESHOLDS
    content = read_scores(path) if path.exists() else {}
    if content.get("predictions_sha256") == scored.predictions.digest:
        try:
            objective, triplet = Objective.parse(content["objective"]), Triplet(**content["triplet"])
            unseen = content["dice_tuned_on_other_folds"]
            found = None if unseen is None else Estimate(*(_number(unseen[end]) for end in ("mean", "low", "high")))
        except (KeyError, TypeError):
            raise InputError(f"{path}: not a thresholds file; run 'python -m pneumo_dist tune' again") from None
        return Thresholds(objective, triplet, THRESHOLDS, found)
    objective, reason = Objective(), "out of date" if content else "missing"
    dices = cross_tuned(scored.histograms, scored.folds, objective)
    return Thresholds(
        objective=objective,
        triplet=objective.search(scored.histograms),
        source=f"tuned for this report, as {THRESHOLDS} is {reason}",
        unseen=None if dices is None else estimate(dices, scored.groups),
    )


def _number(value: float | None) -> float:
    """JSON has no nan: null stands for it."""
    return math.nan if value is None else float(value)


def lesion_sensitivity(scored: Scored, triplet: Triplet) -> tuple[int, Estimate]:
    """Return how many 8-connected label parts the films have, and the share that their masks touch by a pixel."""
    found: list[Truths] = []
    groups: list[Names] = []
    for index in np.flatnonzero(scored.positive).tolist():
        grid = scored.predictions.grid(index)
        truth = rle.decode(str(scored.predictions.rows[index]["rle"]), grid.height, grid.width)
        mask = apply_rule(label_map(scored.predictions.p8(index), grid), Rule(triplet))
        found.append(touched_parts(truth, mask))
        groups.append(np.repeat(scored.groups[index], len(found[-1])))
    if not found:
        return 0, Estimate(math.nan, math.nan, math.nan)
    touched: Floats = np.concatenate(found).astype(np.float64)
    return len(touched), estimate(touched, np.concatenate(groups))


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
        try:
            epochs = read_epochs(path)
        except ValueError:
            raise InputError(f"{path}: not valid JSON lines; restore it from a copy or remove it") from None
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
        content = yaml.safe_load(path.read_text())
        stages = content.get("stages", []) if isinstance(content, dict) else []
        return [str(stage["name"]) for stage in stages]
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
        films: npt.NDArray[np.bool_] = np.asarray(splits == split)
        if films.any():
            positives = None if split == "test" else int(positive[films].astype(bool).sum())
            counts.append(SplitCount(split, int(films.sum()), positives, len(set(groups[films].tolist()))))
    return counts


def environment(predictions: Predictions) -> list[tuple[str, str]]:
    """Return names and values of what the figures were made with."""
    written = (predictions.folder / MANIFEST).stat().st_mtime
    packages = [(name, _version(name)) for name in PACKAGES]
    return [
        ("pneumo_dist", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, version) for name, version in packages if version),
        ("predictions written", datetime.datetime.fromtimestamp(written, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("SHA-256 of the predictions", predictions.digest),
        ("SHA-256 of the dataset", str(predictions.manifest.get("dataset", "not noted"))),
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
